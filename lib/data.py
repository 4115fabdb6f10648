"""Load text as one long row of tokens, cached on disk by content."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .compressors.base import require, require_int
from .docs import SPLITS, docs_text
from .hub import ask_for_dataset
from .paths import atomic_path, cache_dir, local_path

# hub id, configuration, column of text; read as a stream, so that little is downloaded
HUB_TEXTS = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "pg19": ("emozilla/pg19", None, "text"),
}
HUB_SPLITS = {"heldout": "test", "train": "train"}
ALLOWED = "'docs', 'wikitext', 'pg19', or the path of a .txt or .parquet file"


def load_tokens(
    name: str, tokenizer, max_tokens: int | None = None, split: str = "heldout"
) -> torch.LongTensor:
    """Tokens (T,) of a text, with the special first token if the tokenizer puts one.

    `name`: "docs" (docstrings of the installed packages, offline), a .txt or .parquet path, or
    "wikitext" / "pg19" from the hub; `split` is "heldout" or "train" (files have only one). A
    relative path is looked for in the working directory, then in the repository.
    ValueError on an unknown name or a file that holds no text, OSError where none can be read.
    """
    require(isinstance(name, str | Path), "text name", name, ALLOWED)
    require(split in SPLITS, "split", split, f"one of {sorted(SPLITS)}")
    if max_tokens is not None:
        require_int("max_tokens", max_tokens, 1)
    for text in _beginnings(name, split, max_tokens):
        if not text.strip():
            raise ValueError(f"text {str(name)!r} is empty")
        tokens = _tokens(text, tokenizer)
        # twice as many, so that none that is returned depends on where the reading stopped
        if max_tokens is not None and len(tokens) >= 2 * max_tokens:
            break
    return tokens[:max_tokens]


def _tokens(text: str, tokenizer) -> torch.LongTensor:
    """All tokens of a text, from disk the second time."""
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
        yield from _longer(docs_text(split), size)
    elif name in HUB_TEXTS:
        yield from _joined(_hub_rows(name, split), size)
    else:
        require(Path(name).suffix in (".txt", ".parquet"), "text name", name, ALLOWED)
        yield from _longer(_file_text(local_path(name)), size)


def _longer(text: str, size: int | None) -> Iterator[str]:
    """The first `size` characters, twice as many and so on, then all."""
    while size is not None and size < len(text):
        yield text[:size]
        size *= 2
    yield text


def _file_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"text {str(path)!r}: no such file")
    try:
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8")
        # TypeError: the column holds something else than text
        return "\n\n".join(pd.read_parquet(path, columns=["text"])["text"].dropna())
    except (ValueError, TypeError) as error:
        needed = "a .txt file must be UTF-8, a .parquet file must have a column `text` of text"
        raise ValueError(f"text {str(path)!r} can't be read: {needed}") from error


def _hub_rows(name: str, split: str) -> Iterator[str]:
    hub_id, configuration, column = HUB_TEXTS[name]
    try:
        ask_for_dataset(hub_id)
        from datasets import load_dataset  # slow to import, and only needed here

        rows = load_dataset(hub_id, configuration, split=HUB_SPLITS[split], streaming=True)
        for row in rows:
            yield row[column]
    except (OSError, ConnectionError) as error:
        raise OSError(
            f"text {name!r} ({hub_id}) could not be read from the hub. Without network, use 'docs' "
            "or the path of a .txt or .parquet file."
        ) from error


def _joined(rows: Iterator[str], size: int | None) -> Iterator[str]:
    """Rows as one text: what has `size` characters, then twice as many and so on, then all."""
    read, length = [], 0
    for row in rows:
        read.append(row)
        length += len(row)
        if size is not None and length >= size:
            yield "\n\n".join(read)
            size *= 2
    yield "\n\n".join(read)
