"""What this process has loaded: noted by `lib.load`, read by what saves results."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from .paths import ROOT

_models: list[dict[str, Any]] = []
_texts: list[dict[str, Any]] = []


def note_model(name: str, model, folder: Path | None = None) -> None:
    """Note a model: `folder` is where its files lie, None if it came from the hub or from a shape.

    A hub's model is told by its commit, files by their content.
    """
    fact = {
        "name": short_name(name),
        "revision": getattr(model.config, "_commit_hash", None),
        "sha256": _folder_hash(folder) if folder else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.config._attn_implementation,
    }
    if fact not in _models:
        _models.append(fact)


def note_text(name: str | Path, split: str, tokens, revision: str | None = None) -> None:
    """Note a text by the tokens (T,) that were read of it."""
    content = hashlib.sha256(tokens.numpy().astype("<i8").tobytes())
    fact = {"name": short_name(name), "revision": revision, "split": split}
    fact |= {"tokens": len(tokens), "sha256": content.hexdigest()[:16]}
    if fact not in _texts:
        _texts.append(fact)


def loaded() -> dict[str, list[dict[str, Any]]]:
    """All `models` and `texts` noted so far, each once."""
    return {"models": list(_models), "texts": list(_texts)}


def short_name(name: str | Path) -> str:
    """A name as it may stand in results: of a path outside the repository the last part only."""
    path = Path(name).expanduser()
    if path.is_absolute() or ".." in path.parts:
        inside = path.resolve().is_relative_to(ROOT)
        return path.resolve().relative_to(ROOT).as_posix() if inside else path.name
    return str(name)


def files_hash(files: list[Path], root: Path) -> str:
    """16 hexadecimal digits of the contents and names of files below `root`."""
    total = hashlib.sha256()
    for file in sorted(files):
        status = file.stat()
        total.update(f"{file.relative_to(root).as_posix()}\0".encode())
        total.update(_file_hash(file, status.st_size, status.st_mtime_ns))
    return total.hexdigest()[:16]


def _folder_hash(folder: Path) -> str:
    """Of weights, configuration and tokenizer."""
    return files_hash([*folder.glob("*.safetensors"), *folder.glob("*.json")], folder)


@cache
def _file_hash(file: Path, size: int, changed_ns: int) -> bytes:
    """SHA-256 of a file, read once as long as its size and time are the same."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
