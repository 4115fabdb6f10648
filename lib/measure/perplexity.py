"""Chunked evaluation: negative log-likelihood per token, perplexity, accuracy.

For position-only methods (dense, window, sinks + window) the result does not depend on the chunk:
it equals feeding the text token by token. Methods that look at the keys cut once per chunk, so
there the chunk is part of the definition.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import Cache

from lib.cache.baseline import OriginalPositions, held_lengths, make_cache
from lib.cache.checks import check_ids
from lib.compressors import Compressor
from lib.compressors.base import as_float
from lib.progress import progress
from lib.require import require, require_int

# rows of logits that are looked at together: few fit into a processor's cache
ROWS, GPU_ROWS = 16, 512


@dataclass
class Evaluation:
    """What `evaluate` returns; everything is about the predicted tokens 1 .. T-1."""

    nll: torch.Tensor  # nats per predicted token, (T - 1,) or (B, T - 1)
    correct: torch.Tensor  # whether the likeliest token was the right one, like `nll`
    cache_lengths: list[int]  # tokens held per layer at the end

    def __getitem__(self, name: str) -> float:
        """`result["perplexity"]` and `result["accuracy"]`: `ppl` and `accuracy` by their names."""
        values = {"perplexity": self.ppl, "accuracy": self.accuracy}
        require(name in values, "name", name, f"one of {tuple(values)}")
        return values[name]

    @property
    def ppl(self) -> float:
        """Perplexity, exp of the mean NLL: infinite where no float is as high."""
        mean = self.nll.double().mean().item()
        return math.inf if mean > math.log(sys.float_info.max) else math.exp(mean)

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return self.correct.float().mean().item()

    @property
    def cache_length(self) -> int:
        """Tokens held at the end by the layer that holds most."""
        return max(self.cache_lengths)


@torch.no_grad()
def evaluate(
    model,
    input_ids: torch.Tensor,
    compressor: Compressor | None = None,
    chunk_size: int = 512,
    positions: str = "in_cache",
    buffer: int = 0,
    desc: str | None = None,
    after_chunk: Callable[[int, Cache], None] | None = None,
) -> Evaluation:
    """Predict every token of `input_ids`, (T,) or (B, T), from what `compressor` left of the past.

    `compressor=None` is dense attention; `buffer` tokens may pile up before a cut. `desc` shows a
    progress bar of tokens under that name; `after_chunk(done, cache)` is called with the number of
    tokens done. Raises ValueError on fewer than two tokens or a chunk below one.
    """
    require_int("chunk_size", chunk_size, 1)
    ids = check_ids(model, input_ids, 2)
    cache = make_cache(model, compressor, buffer, positions)
    nll, correct = feed(model, ids, chunk_size, cache, after_chunk, desc)
    return _evaluation(input_ids, nll, correct, held_lengths(cache))


@torch.no_grad()
def evaluate_with_compression(
    model,
    tokenizer,
    text: str,
    compress_fn: Callable | None = None,
    compress_kwargs: dict | None = None,
    chunk_size: int = 512,
    max_tokens: int | None = None,
    positions: str = "in_cache",
) -> Evaluation:
    """Evaluate `text` under a compress function: one of ours, or any `f(pairs, **kwargs) -> pairs`.

    Our functions run as their compressor does in `evaluate`. Another one is called after every
    chunk with a list of (key, value) and sees original positions, since it can't turn keys.
    """
    if max_tokens is not None:
        require_int("max_tokens", max_tokens, 2)
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0, :max_tokens]
    kwargs = compress_kwargs or {}
    if compress_fn is None or hasattr(compress_fn, "method"):
        method = None if compress_fn is None else compress_fn.method(**kwargs)
        return evaluate(model, ids, method, chunk_size, positions)
    require(callable(compress_fn), "compress_fn", compress_fn, "a function of (pairs, **kwargs)")
    require_int("chunk_size", chunk_size, 1)
    batch = check_ids(model, ids, 2)

    def compress(done: int, cache: Cache) -> None:
        pairs = compress_fn([(layer.keys, layer.values) for layer in cache.layers], **kwargs)
        for layer, (key, value) in zip(cache.layers, pairs, strict=True):
            layer.keys, layer.values = key, value

    cache = OriginalPositions(model)
    nll, correct = feed(model, batch, chunk_size, cache, compress)
    return _evaluation(ids, nll, correct, held_lengths(cache))


@torch.no_grad()
def feed(
    model,
    ids: torch.Tensor,
    chunk_size: int,
    cache: Cache,
    after_chunk: Callable[[int, Cache], None] | None = None,
    desc: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL (nats) of each next token of `ids` (B, T) and whether it was predicted right, (B, T - 1).

    All tokens but the last are fed to `cache`, `chunk_size` at a time; `after_chunk(done, cache)`
    is called when `done` have been fed.
    """
    B, T = ids.shape
    nll = torch.zeros(B, T - 1)  # zeros, not empty: all of its memory is taken now
    correct = torch.zeros(B, T - 1, dtype=torch.bool)
    bar = progress(total=T - 1, desc=desc, unit="token", disable=desc is None)
    for start in range(0, T - 1, chunk_size):
        end = min(start + chunk_size, T - 1)
        chunk = ids[:, start:end]
        logits = model(input_ids=chunk, past_key_values=cache, use_cache=True).logits
        loss, right = _predicted(logits, ids[:, start + 1 : end + 1])
        nll[:, start:end], correct[:, start:end] = loss.cpu(), right.cpu()
        if after_chunk is not None:
            after_chunk(end, cache)
        bar.update(end - start)
    bar.close()
    return nll, correct


def _predicted(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of the tokens `target` (B, n) and whether they were likeliest, by logits (B, n, V).

    Some rows at a time: all logits as floats would be the largest tensor there is.
    """
    losses, right = [], []
    rows = ROWS if logits.device.type == "cpu" else GPU_ROWS
    for some, tokens in zip(
        logits.flatten(0, 1).split(rows), target.flatten().split(rows), strict=True
    ):
        some = as_float(some)
        losses.append(F.cross_entropy(some, tokens, reduction="none"))
        right.append(_likeliest(some) == tokens)
    return torch.cat(losses).view(target.shape), torch.cat(right).view(target.shape)


def _likeliest(rows: torch.Tensor) -> torch.Tensor:
    """Where each of `rows` (n, V) is highest: on a CPU numpy looks ten times as fast as torch."""
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy().argmax(-1))
    return rows.argmax(-1)


@torch.no_grad()
def evaluate_recompute(
    model,
    input_ids: torch.Tensor,
    context: int,
    targets: torch.Tensor,
    start_size: int = 0,
    batch_size: int = 16,
    desc: str | None = None,
) -> torch.Tensor:
    """NLL (nats) of the tokens `targets` (n,) when the window is encoded anew for each of them.

    `input_ids` (T,) or (B, T) gives (n,) or (B, n). Each target at index i is predicted from the
    `context` tokens before it; with `start_size` the first of these are the text's first tokens, as
    in sinks + window. This is the paper's "sliding window with re-computation", quadratic in the
    window for every token.
    """
    ids = check_ids(model, input_ids, 2)
    low, high = context, ids.shape[1] - 1
    require_int("context", context, 1)
    require_int("start_size", start_size, 0)
    require(start_size < context, "start_size", start_size, f"less than context={context}")
    ok = len(targets) and low <= int(targets.min()) and int(targets.max()) <= high
    require(ok, "targets", targets.tolist()[:8], f"indices in {low}..{high}")
    recent = targets[:, None] - torch.arange(context - start_size, 0, -1)
    windows = torch.cat((torch.arange(start_size).expand(len(targets), -1), recent), dim=1)
    losses, batches = [], torch.arange(len(ids) * len(targets)).split(batch_size)  # text by text
    for batch in progress(batches, desc=desc, disable=desc is None):
        which, rows = batch % len(targets), ids[(batch // len(targets)).to(ids.device)]
        contexts = rows.gather(1, windows[which].to(ids.device))  # (batch_size, context)
        expected = rows.gather(1, targets[which, None].to(ids.device))[:, 0]
        logits = model(input_ids=contexts, use_cache=False, logits_to_keep=1).logits[:, -1]
        losses.append(F.cross_entropy(logits.float(), expected, reduction="none").cpu())
    nll = torch.cat(losses).view(len(ids), len(targets))
    return nll[0] if input_ids.ndim == 1 else nll


def _evaluation(input_ids, nll, correct, lengths) -> Evaluation:
    if input_ids.ndim == 1:
        nll, correct = nll[0], correct[0]
    return Evaluation(nll, correct, lengths)
