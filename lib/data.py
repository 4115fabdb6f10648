"""Load text as one long row of tokens, cached on disk by content."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .compressors.base import require, require_int
from .docs import SPLITS, docs_text
from .paths import atomic_path, cache_dir

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
    "wikitext" / "pg19" from the hub; `split` is "heldout" or "train" (files have only one).
    ValueError on an unknown name, OSError where a text can't be read.
    """
    require(split in SPLITS, "split", split, f"one of {sorted(SPLITS)}")
    if max_tokens is not None:
        require_int("max_tokens", max_tokens, 1)
    text = _text(name, split, max_tokens)
    recipe = tokenizer.backend_tokenizer.to_str()
    key = hashlib.sha256(f"{recipe}\0{text}".encode(errors="replace")).hexdigest()[:24]
    path = cache_dir() / "tokens" / f"{key}.npy"
    if not path.exists():
        ids = tokenizer(text, verbose=False).input_ids
        with atomic_path(path) as temporary:
            np.save(temporary, np.asarray(ids, dtype=np.int32))
    tokens = torch.from_numpy(np.load(path).astype(np.int64))
    return tokens[:max_tokens]


def _text(name: str, split: str, max_tokens: int | None) -> str:
    if name == "docs":
        return docs_text(split)
    if name in HUB_TEXTS:
        return _hub_text(name, split, max_tokens)
    path = Path(name)
    require(path.suffix in (".txt", ".parquet"), "text name", name, ALLOWED)
    if not path.is_file():
        raise FileNotFoundError(f"text {name!r}: no such file")
    if path.suffix == ".txt":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(pd.read_parquet(path, columns=["text"])["text"])


def _hub_text(name: str, split: str, max_tokens: int | None) -> str:
    """Rows of a hub text; with `max_tokens`, only as many as surely hold that many tokens."""
    from datasets import load_dataset  # slow to import, and only needed here

    hub_id, configuration, column = HUB_TEXTS[name]
    try:
        rows = load_dataset(hub_id, configuration, split=HUB_SPLITS[split], streaming=True)
        return "\n\n".join(_enough((row[column] for row in rows), max_tokens))
    except (OSError, ConnectionError) as error:
        raise OSError(
            f"text {name!r} ({hub_id}) could not be read from the hub. Without network, use 'docs' "
            "or the path of a .txt or .parquet file."
        ) from error


def _enough(parts: Iterator[str], max_tokens: int | None) -> Iterator[str]:
    """Parts until they surely hold `max_tokens` tokens: no text has 16 characters to a token."""
    length = 0
    for part in parts:
        yield part
        length += len(part)
        if max_tokens is not None and length > 16 * max_tokens:
            return
