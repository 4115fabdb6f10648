"""The text that is explored: a shipped one from any place on, a file's, or typed words."""

import torch

from lib.load.texts import load_tokens
from lib.require import require

from .setting import LONGEST

SHORTEST = 64
TYPED = "typed"


def text_errors(text: str, typed: str, offset: int, seq_len: int) -> dict[str, str]:
    """What is not allowed before anything is read, a sentence by control."""
    found = {}
    if text == TYPED and not typed.strip():
        found["typed"] = "the typed text is empty"
    if not text.strip():
        found["text"] = "text: give docs, typed, or the path of a .txt or .parquet file"
    if not isinstance(offset, int) or not 0 <= offset <= 10_000_000:
        found["offset"] = f"from = {offset}: allowed is 0 to 10,000,000 tokens"
    if not isinstance(seq_len, int) or not SHORTEST <= seq_len <= LONGEST:
        found["seq_len"] = f"length = {seq_len}: allowed is {SHORTEST} to {LONGEST:,} tokens"
    return found


def text_tokens(
    tokenizer, text: str, typed: str, offset: int, seq_len: int, named: str = "seq_len"
) -> torch.LongTensor:
    """Exactly `seq_len` tokens (T,) of a text from the token `offset` on, or all that was typed.

    A text begins as the tokenizer begins it, wherever it begins. ValueError on one that is too
    short or, typed, too long; OSError where none can be read. `named` is what `seq_len` is called.
    """
    if text == TYPED:
        tokens = torch.tensor(tokenizer(typed, verbose=False).input_ids, dtype=torch.long)
        ok = SHORTEST <= len(tokens) <= LONGEST
        require(ok, "typed text", f"{len(tokens):,} tokens", f"{SHORTEST} to {LONGEST:,} tokens")
        return tokens
    tokens = load_tokens(text, tokenizer, offset + seq_len)
    needed = f"from {offset:,} on, no more than the text's {len(tokens):,} tokens"
    require(len(tokens) == offset + seq_len, named, seq_len, needed)
    piece = tokens[offset:].clone()
    if tokens[0] == tokenizer.bos_token_id:
        piece[0] = tokens[0]
    return piece
