"""What each mistake of `lib/mistakes.py` costs against a right way that differs in it alone."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as remember
from functools import partial

import numpy as np
import pandas as pd
import torch
from transformers import Cache

from .cache import CompressedCache
from .checks import check_ids
from .comparison import ratio_table
from .compressors import Compressor, FixSizeL2, L2Compress, StreamingLLM
from .hooks import attach
from .memory import held_lengths
from .mistakes import DenseInChunk, EagerEviction, HookInEveryLayer, LengthOfLayer0, Unsorted
from .perplexity import _run
from .progress import progress
from .stats import ppl_ci


@dataclass
class Run:
    """What `run` returns for texts (B, T)."""

    nll: torch.Tensor  # nats per predicted token, (B, T - 1)
    tokens_per_s: np.ndarray  # of each forward pass of a whole chunk, all texts together
    held: float  # tokens held at the end, mean over layers
    compressions: int  # how often the method was asked about the whole cache; ours: once per chunk
    cuts: int  # how often the layer was cut that was cut most
    chunk_size: int


@torch.no_grad()
def run(model, ids: torch.Tensor, make: Callable[[], Cache], chunk_size: int = 1) -> Run:
    """Evaluate `ids` (B, T) with the cache that `make` makes, as `lib.evaluate` does with ours."""
    ids, cache = check_ids(model, ids, 2), make()
    attach(model)
    ends = [time.perf_counter()]

    def after(done: int) -> None:
        ends.append(time.perf_counter())

    try:
        nll, _ = _run(model, ids, chunk_size, lambda n: {"past_key_values": cache}, after, None)
    finally:
        if isinstance(cache, HookInEveryLayer):
            cache.close()
    whole = max((ids.shape[1] - 1) // chunk_size, 1)  # chunks; the last one may be shorter
    return Run(
        nll=nll,
        tokens_per_s=len(ids) * chunk_size / np.diff(ends)[:whole],
        held=float(np.mean(held_lengths(cache))),
        compressions=getattr(cache, "compressions", len(ends) - 1),
        cuts=cache.evictions,
        chunk_size=chunk_size,
    )


@dataclass
class Case:
    """A mistake and its right way, and the chunks in which each is fed."""

    why: str
    wrong: Callable[[], Cache]
    right: Callable[[], Cache]
    chunk_size: int
    right_chunk_size: int | None = None  # if it is another one
    far: bool = False  # shows only on long texts


def cases(model, cache: int, start_size: int, chunk_size: int, cut_chunk: int) -> dict[str, Case]:
    """All mistakes at a budget of `cache` tokens, by name.

    `chunk_size` is that of position-only methods, `cut_chunk` that of methods that look at keys.
    """
    layers = model.config.get_text_config().num_hidden_layers
    streaming = StreamingLLM(start_size, cache - start_size)
    norms = FixSizeL2(cache, 0.5, "keep_high", ())
    lower = FixSizeL2(cache, 0.5, "keep_high", tuple(range(layers // 2, layers)))
    share, every = L2Compress(0.8, 0, ()), max(cache // 4, 1)  # settles at `cache` tokens

    def ours(method, positions="original"):
        return partial(CompressedCache, model, method, positions=positions)

    def wrong(mistake, method):
        return partial(mistake, model, method)

    window, mixed = ours(streaming), Unsorted(norms)
    eager, dense = wrong(EagerEviction, streaming), wrong(DenseInChunk, streaming)
    hooked, fixed = wrong(HookInEveryLayer, share), wrong(HookInEveryLayer, streaming)
    length = wrong(LengthOfLayer0, lower)
    return {
        "cut before attention": Case(
            "the step's own tokens are gone before they are looked at", eager, window, chunk_size
        ),
        "dense within the chunk": Case(
            "tokens see more than the budget: too good, and by chunk", dense, window, chunk_size
        ),
        "hooks, share kept": Case(
            f"80% of the cache, meant every {every} tokens, kept at every token: that every layer "
            "cuts them all adds nothing to it",
            *(hooked, ours(share), 1, every),
        ),
        "hooks, fixed size": Case(
            "cutting again to the same size changes nothing", fixed, window, 1
        ),
        "keys not turned": Case(
            "sinks stand ever farther away, beyond trained distances",
            *(window, ours(streaming, "in_cache"), 512),
            far=True,
        ),
        "length of layer 0": Case(
            "the position stands still, order is lost", length, ours(lower), cut_chunk
        ),
        "unsorted, turned": Case(
            "positions are given by rank of the score",
            *(ours(mixed, "in_cache"), ours(norms, "in_cache"), cut_chunk),
        ),
        "unsorted, not turned": Case(
            "at the next cut the last places are not the recent tokens",
            *(ours(mixed), ours(norms), cut_chunk),
        ),
    }


def run_cases(
    model, near: torch.Tensor, far: torch.Tensor, chosen: Mapping[str, Case]
) -> dict[str, tuple[Run, Run]]:
    """Each mistake and its right way on the texts `near` or `far` (B, T), by name."""

    @remember  # mistakes may share a right way
    def once(make, chunk_size: int, is_far: bool) -> Run:
        texts = far if is_far else near
        run(model, texts[:, : chunk_size + 1], make, chunk_size)  # warms up
        return run(model, texts, make, chunk_size)

    done = {}
    for name, case in progress(chosen.items(), desc="mistakes"):
        right_chunk = case.right_chunk_size or case.chunk_size
        wrong = once(case.wrong, case.chunk_size, case.far)
        done[name] = wrong, once(case.right, right_chunk, case.far)
    return done


def mistake_table(
    pairs: Mapping[str, tuple[Run, Run]], chosen: Mapping[str, Case], first: int
) -> pd.DataFrame:
    """A row per mistake: perplexity from token `first` on, its ratio to the right way, speed.

    95% intervals over texts, paired by text for the ratio; tokens/s of all texts together, median
    and quartiles over forward passes, next to the right way's where it is fed the same chunks.
    """
    nll = {name: tuple(one.nll[:, first:] for one in pair) for name, pair in pairs.items()}
    table = ratio_table(nll).rename(columns={"method": "mistake"})
    table.insert(4, "right_ppl", [ppl_ci(right)[0] for _, right in nll.values()])
    rows = []
    for name, (wrong, right) in pairs.items():
        low, middle, high = np.quantile(wrong.tokens_per_s, (0.25, 0.5, 0.75))
        alike = wrong.chunk_size == right.chunk_size
        row = {"compressions": wrong.compressions, "cuts": wrong.cuts, "right_cuts": right.cuts}
        row |= {"tokens_held": wrong.held, "chunk_size": wrong.chunk_size}
        row |= {"tokens_per_s": middle, "tokens_per_s_q1": low, "tokens_per_s_q3": high}
        row["right_tokens_per_s"] = float(np.median(right.tokens_per_s)) if alike else np.nan
        rows.append(row | {"why": chosen[name].why})
    return pd.concat((table, pd.DataFrame(rows)), axis=1)


def by_chunk(
    model, texts: torch.Tensor, method: Compressor, chunk_sizes: list[int], first: int
) -> pd.DataFrame:
    """Perplexity from token `first` on against the chunk: exact, and two ways that depend on it.

    Columns `way`, `chunk_size`, `ppl`, `ppl_low`, `ppl_high`, and `ratio`, `ratio_low`,
    `ratio_high` to the exact perplexity, paired by text; 95% intervals over `n_texts`.
    """
    ways = {
        "exact": partial(CompressedCache, model, method, positions="original"),
        "dense within the chunk": partial(DenseInChunk, model, method),
        "cut before attention": partial(EagerEviction, model, method),
    }
    places = [(way, chunk_size) for way in ways for chunk_size in chunk_sizes]
    nll = {
        (way, chunk_size): run(model, texts, ways[way], chunk_size).nll[:, first:]
        for way, chunk_size in progress(places, desc="chunks")
    }
    pairs = {place: (own, nll["exact", max(chunk_sizes)]) for place, own in nll.items()}
    table = pd.DataFrame(places, columns=["way", "chunk_size"])
    return pd.concat((table, ratio_table(pairs).drop(columns="method")), axis=1)
