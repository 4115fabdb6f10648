"""A local model laid out as the hub does it: looked through before anything is read."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_tokenizer(folder: Path) -> None:
    """OSError unless `folder` has a tokenizer: transformers would make up an empty one."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise OSError(f"model folder {str(folder)!r}: none of {', '.join(TOKENIZER_FILES)} in it")


def check_weights(folder: Path) -> None:
    """OSError naming the file unless all safetensors of `folder` are there and whole.

    Allowed are one `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
    """
    shards = [WEIGHTS] if (folder / WEIGHTS).is_file() else _shards(folder)
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise OSError(
            f"model folder {str(folder)!r}: {INDEX} names {', '.join(absent)}: no such file"
        )
    for shard in shards:
        try:
            with safe_open(folder / shard, "pt"):  # reads the header, which knows the file's size
                pass
        except SafetensorError as error:
            what = "cut short, or no safetensors file (a pointer of git LFS?)"
            raise OSError(f"model file {str(folder / shard)!r}: {what}: {error}") from error


def _shards(folder: Path) -> list[str]:
    """File names in the index, sorted."""
    if not (folder / INDEX).is_file():
        other = sorted(file.name for kind in ("*.bin", "*.pt*") for file in folder.glob(kind))
        raise OSError(
            f"model folder {str(folder)!r}: neither {WEIGHTS} nor {INDEX} in it"
            + (f", and {', '.join(other)} can't be read: only safetensors are" if other else "")
        )
    try:
        weights = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weights.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(
            f'model file {str(folder / INDEX)!r}: no JSON of {{"weight_map": {{tensor: file}}}}'
        ) from error
