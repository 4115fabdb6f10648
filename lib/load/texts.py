"""Load text as one long row of tokens, cached on disk by content."""

import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.loaded import note_text
from lib.paths import atomic_path, cache_dir, local_path
from lib.require import require, require_int

from .docstrings import SPLITS, docs_rows
from .hub import ask_for_dataset


@dataclass(frozen=True)
class HubText:
    """A data set of parquet files on the hub, at a commit, so that its text never changes."""

    hub_id: str
    configuration: str | None
    revision: str


HUB_TEXTS = {
    "wikitext": HubText(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3"
    ),
    # deepmind/pg19 as parquet files: that one is a script, which datasets no longer runs
    "pg19": HubText("emozilla/pg19", None, "c021754c8e01c5b1cc83a1f549c1f97fbbb756b8"),
}
HUB_SPLITS = {"heldout": "test", "train": "train"}
ALLOWED = "'docs', 'wikitext', 'pg19', or the path of a .txt or .parquet file"


def load_tokens(
    name: str, tokenizer, max_tokens: int | None = None, split: str = "heldout"
) -> torch.LongTensor:
    """The first `max_tokens` tokens (T,) of a text, or all.

    A text begins as the tokenizer begins it: with `<|endoftext|>` for the reference model, with no
    special token for SmolLM2 and Pythia. `name`: "docs" (docstrings of the installed packages,
    offline), a .txt or .parquet path, or "wikitext" / "pg19" from the hub; `split` is "heldout" or
    "train" (files have only one). A relative path is looked for in the working directory, then in
    the repository.
    ValueError on an unknown name or a file that holds no text, OSError where none can be read.
    """
    require(isinstance(name, str | Path), "text name", name, ALLOWED)
    require(split in SPLITS, "split", split, f"one of {sorted(SPLITS)}")
    if max_tokens is not None:
        require_int("max_tokens", max_tokens, 1)
    for text in _beginnings(name, split, max_tokens):
        tokens = _tokens(text, tokenizer)
        # twice as many, so that none that is returned depends on where the reading stopped
        if max_tokens is not None and len(tokens) >= 2 * max_tokens:
            break
    if not text.strip():
        raise ValueError(f"text {str(name)!r} is empty")
    tokens = tokens[:max_tokens]
    revision = HUB_TEXTS[name].revision if name in HUB_TEXTS else None
    note_text(name, split, tokens, revision)
    return tokens


def _tokens(text: str, tokenizer) -> torch.LongTensor:
    """All tokens of a text, from disk the second time if the tokenizer can be written down."""
    if not hasattr(tokenizer, "backend_tokenizer"):  # one in plain Python
        return torch.tensor(tokenizer(text, verbose=False).input_ids)
    recipe = tokenizer.backend_tokenizer.to_str()
    key = hashlib.sha256(f"{recipe}\0{text}".encode(errors="replace")).hexdigest()[:24]
    path = cache_dir() / "tokens" / f"{key}.npy"
    if not path.exists():
        ids = tokenizer(text, verbose=False).input_ids
        with atomic_path(path) as temporary:
            np.save(temporary, np.asarray(ids, dtype=np.int32))
    return torch.from_numpy(np.load(path).astype(np.int64))


def _beginnings(name: str | Path, split: str, max_tokens: int | None) -> Iterator[str]:
    """Longer and longer beginnings of a text, the last one whole."""
    size = None if max_tokens is None else 12 * max_tokens
    if name == "docs":
        return _longer(docs_rows(split), "\n", size)
    if name in HUB_TEXTS:
        return _longer(_hub_rows(name, split), "\n\n", size)
    path = local_path(name)
    require(path.suffix in (".txt", ".parquet"), "text name", str(name), ALLOWED)
    return _longer(_file_rows(path), "" if path.suffix == ".txt" else "\n\n", size)


def _longer(rows: Iterable[str], separator: str, size: int | None) -> Iterator[str]:
    """The first `size` characters of the joined rows, twice as many and so on, then all.

    No more rows are read than these characters need.
    """
    read, length = [], 0
    for row in rows:
        length += len(row) + (len(separator) if read else 0)
        read.append(row)
        while size is not None and length >= size:
            yield separator.join(read)[:size]
            size *= 2
    yield separator.join(read)


def _hub_rows(name: str, split: str) -> Iterator[str]:
    text = HUB_TEXTS[name]
    options = {"split": HUB_SPLITS[split], "revision": text.revision, "streaming": True}
    try:
        ask_for_dataset(text.hub_id, text.revision)
        from datasets import load_dataset  # slow to import, and not needed for the docs

        yield from _texts(load_dataset(text.hub_id, text.configuration, **options))
    except Exception as error:  # whatever the network library of the day raises
        raise OSError(
            f"text {name!r} ({text.hub_id}) could not be read from the hub. Without network, use "
            "'docs' or the path of a .txt or .parquet file."
        ) from error


def _file_rows(path: Path) -> Iterator[str]:
    """Lines of a .txt file with their ends, or the texts of a .parquet file."""
    if not path.is_file():
        raise FileNotFoundError(f"text {str(path)!r}: no such file")
    from datasets import IterableDataset  # load_dataset would tell the hub of the reading

    name = glob.escape(str(path))
    try:
        if path.suffix == ".txt":
            yield from _texts(IterableDataset.from_text(name, keep_linebreaks=True))
        else:
            yield from _texts(IterableDataset.from_parquet(name, columns=["text"]))
    except (ValueError, TypeError) as error:
        needed = "a .txt file must be UTF-8, a .parquet file must have a column `text` of text"
        raise ValueError(f"text {str(path)!r} can't be read: {needed}") from error


def _texts(rows: Iterable[dict]) -> Iterator[str]:
    """The column `text` of a streamed data set: rows that aren't asked for aren't read."""
    for row in rows:
        if row["text"] is None:
            continue
        if not isinstance(row["text"], str):
            raise TypeError(f"the column `text` holds {type(row['text']).__name__}")
        yield row["text"]


def texts_of(
    tokens: torch.Tensor, num_texts: int, length: int, bos_token_id: int | None = None
) -> torch.Tensor:
    """`num_texts` non-overlapping stretches spread evenly over `tokens` (T,): (num_texts, length).

    Where `tokens` begins with `bos_token_id`, so does each text, in place of its first token.
    """
    needed = num_texts * length
    require(len(tokens) >= needed, "tokens", len(tokens), f"num_texts * length = {needed} or more")
    stride = len(tokens) // num_texts
    texts = torch.stack([tokens[i * stride : i * stride + length] for i in range(num_texts)])
    if tokens[0] == bos_token_id:
        texts[:, 0] = bos_token_id
    return texts
