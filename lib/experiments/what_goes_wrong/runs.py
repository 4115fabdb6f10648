"""What each mistake of `mistakes.py` costs against a right way that differs in it alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as remember
from functools import partial
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from transformers import Cache

from lib.cache.baseline import held_lengths, streams
from lib.cache.checks import check_ids
from lib.cache.compressed import CompressedCache
from lib.compressors import Compressor
from lib.measure.perplexity import feed
from lib.measure.stats import ppl_ci, ratio_table, summarise
from lib.progress import progress

from .cases import Case
from .mistakes import DenseInChunk, EagerEviction, HookInEveryLayer


@dataclass
class Run:
    """What `run` returns for texts (B, T)."""

    nll: torch.Tensor  # nats per predicted token, (B, T - 1)
    held: float  # tokens held at the end, mean over layers
    compressions: int  # how often the method was asked about the whole cache
    cuts: int  # how often the layer was cut that was cut most
    positions: str  # what distances are counted in: "original" or "in_cache"


@contextmanager
def opened(make: Callable[[], Cache]) -> Iterator[Cache]:
    """The cache that `make` makes; hooks of its own go at the end."""
    cache = make()
    try:
        yield cache
    finally:
        if isinstance(cache, HookInEveryLayer):
            cache.close()


def run(model, ids: torch.Tensor, make: Callable[[], Cache], chunk_size: int = 1) -> Run:
    """Evaluate `ids` (B, T) with the cache that `make` makes, as `lib.evaluate` does with ours."""
    ids = check_ids(model, ids, 2)
    with opened(make) as cache:
        nll, _ = feed(model, ids, chunk_size, cache)
    fed = ids.shape[1] - 1
    if isinstance(cache, CompressedCache):  # position-only methods have a window for every token
        compressions = fed if streams(cache.compressor) else -(-fed // chunk_size)
    else:
        compressions = cache.compressions
    return Run(
        nll=nll,
        held=float(np.mean(held_lengths(cache))),
        compressions=compressions,
        cuts=cache.evictions,
        positions=getattr(cache, "positions", "original"),  # nothing but ours turns keys
    )


def run_cases(
    model, near: torch.Tensor, far: torch.Tensor, chosen: Mapping[str, Case]
) -> dict[str, tuple[Run, Run]]:
    """Each mistake and its right way on the texts `near` or `far` (B, T), by name."""

    @remember  # mistakes may share a right way
    def once(make, chunk_size: int, is_far: bool) -> Run:
        return run(model, far if is_far else near, make, chunk_size)

    done = {}
    for name, case in progress(chosen.items(), desc="mistakes"):
        right_chunk = case.right_chunk_size or case.chunk_size
        wrong = once(case.wrong, case.chunk_size, case.far)
        done[name] = wrong, once(case.right, right_chunk, case.far)
    return done


def measure_cases(
    model, text: torch.Tensor, chosen: Mapping[str, Case], filled: int, repeats: int
) -> pd.DataFrame:
    """Tokens/s of each mistake and its right way, fed alike, behind the first `filled` tokens.

    Columns `repeat`, `mistake`, `way` ("wrong" or "right") and `tokens_per_s`, on one `text` (T,).
    Repeats are the outer loop, so that drift of the machine hits all alike; a round before them
    warms up. Timed are a quarter of `filled` tokens or a chunk, what is more.
    """
    rows = []
    for repeat in progress(range(-1, repeats), desc="speed"):
        for name, case in chosen.items():
            fed = min(max(filled // 4, case.chunk_size), len(text) - 1 - filled)
            ids = check_ids(model, text[: filled + fed + 1], filled + 2)
            for way, make in (("wrong", case.wrong), ("right", case.right)):
                seconds = _seconds(model, ids, make, filled, case.chunk_size)
                row = {"repeat": repeat, "mistake": name, "way": way, "tokens_per_s": fed / seconds}
                rows.append(row)
    return pd.DataFrame([row for row in rows if row["repeat"] >= 0])


def _seconds(model, ids, make, filled: int, chunk_size: int) -> float:
    """What it takes to feed the tokens of `ids` (1, T) behind the first `filled`."""
    with opened(make) as cache:
        feed(model, ids[:, : filled + 1], filled, cache)
        began = perf_counter()
        feed(model, ids[:, filled:], chunk_size, cache)
        return perf_counter() - began


def mistake_table(
    pairs: Mapping[str, tuple[Run, Run]],
    speeds: pd.DataFrame,
    chosen: Mapping[str, Case],
    first: int,
) -> pd.DataFrame:
    """A row per mistake: perplexity from token `first` on, its ratio to the right way, speed.

    95% intervals over texts, paired by text for the ratio; median and quartiles over the repeats
    of `measure_cases`. Columns `right_...` are the right way's; `difference` and `why` are words.
    """
    nll = {name: tuple(one.nll[:, first:] for one in pair) for name, pair in pairs.items()}
    table = ratio_table(nll).rename(columns={"method": "mistake"})
    table.insert(4, "right_ppl", [ppl_ci(right)[0] for _, right in nll.values()])
    rows = []
    for name, (wrong, right) in pairs.items():
        row = {"compressions": wrong.compressions, "right_compressions": right.compressions}
        row |= {"cuts": wrong.cuts, "right_cuts": right.cuts}
        row |= {"tokens_held": wrong.held, "right_tokens_held": right.held}
        row |= {"right_positions": right.positions, "chunk_size": chosen[name].chunk_size}
        rows.append(row)
    speed = summarise(speeds, ["way", "mistake"], ["tokens_per_s"]).set_index(["way", "mistake"])
    own = speed.loc["wrong"].rename(columns={"n": "n_repeats"})
    right = speed.loc["right"].drop(columns="n").add_prefix("right_")
    table = pd.concat((table, pd.DataFrame(rows)), axis=1).join(own.join(right), on="mistake")
    of_rows = [chosen[name] for name in table.mistake]
    table["difference"] = [case.difference for case in of_rows]
    return table.assign(why=[case.why for case in of_rows])


def told_apart(table: pd.DataFrame) -> dict[str, list[str]]:
    """What the ratios' intervals say of the mistakes of a `mistake_table`: their names by verdict.

    "worse" and "better" than the right way, "equal" to it but for rounding, or "not told apart".
    """
    equal = (table.ratio_low > 1 - 1e-4) & (table.ratio_high < 1 + 1e-4)
    worse, better = (table.ratio_low > 1) & ~equal, (table.ratio_high < 1) & ~equal
    verdicts = {"worse": worse, "better": better, "equal": equal}
    verdicts["not told apart"] = ~(worse | better | equal)
    return {verdict: table.mistake[which].tolist() for verdict, which in verdicts.items()}


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
