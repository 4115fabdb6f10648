"""The mistakes of `mistakes.py`, each beside a right way that differs in it alone, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import Cache

from lib.cache.baseline import LARGE_CHUNK
from lib.cache.compressed import CompressedCache
from lib.compressors import H2OL2, L2Compress, StreamingLLM

from .mistakes import (
    DenseInChunk,
    EagerEviction,
    HookInEveryLayer,
    LengthOfLayer0,
    Unsorted,
)


@dataclass
class Case:
    """A mistake and its right way, which differs in nothing else, and how both are fed."""

    difference: str  # in what the two ways differ
    why: str  # by what mechanism that costs or flatters, whatever the numbers
    wrong: Callable[[], Cache]
    right: Callable[[], Cache]
    chunk_size: int
    # the right way's, for perplexity alone, where longer chunks give the same in less time
    right_chunk_size: int | None = None
    far: bool = False  # shows only on long texts


def cases(model, budget: int, start_size: int, chunk_size: int, cut_chunk: int) -> dict[str, Case]:
    """All mistakes at a budget of `budget` tokens, by name.

    `chunk_size` is that of position-only methods, `cut_chunk` that of methods that look at keys.
    """
    streaming = StreamingLLM(start_size, budget - start_size)
    when = _cut_at_the_wrong_time(model, streaming, max(budget // 4, 1), chunk_size)
    return when | _put_in_the_wrong_place(model, streaming, cut_chunk)


def _ours(model, method, positions="original") -> Callable[[], Cache]:
    return partial(CompressedCache, model, method, positions=positions)


def _cut_at_the_wrong_time(
    model, streaming: StreamingLLM, every: int, chunk_size: int
) -> dict[str, Case]:
    """What leaves too early, too late or too often; the share kept `every` tokens."""
    layers = model.config.get_text_config().num_hidden_layers
    window = _ours(model, streaming)
    eager, dense = (partial(mistake, model, streaming) for mistake in (EagerEviction, DenseInChunk))
    share = L2Compress(0.8, 0, ())  # settles at 4 times `every`, the budget
    rhythm = partial(DenseInChunk, model, share, every)
    return {
        "cut before attention": Case(
            "old tokens leave before the step looks at them, not after it",
            "the new tokens push out old ones that they should still see",
            *(eager, window, chunk_size),
        ),
        "dense within the chunk": Case(
            "tokens see all of their chunk before them, not their window",
            "they see more than the budget holds, as if it were larger",
            *(dense, window, chunk_size),
        ),
        "share at every token": Case(
            f"80% of the cache is kept after every token, not after every {every}",
            "a share of a share, again and again, leaves a handful of tokens",
            *(partial(DenseInChunk, model, share), rhythm, 1, every),
        ),
        "hooks, share kept": Case(
            f"80% of the cache is kept {layers} times after every {every} tokens, not once",
            "the shares of all layers' hooks multiply, so that less than the budget is left",
            *(partial(HookInEveryLayer, model, share, every), rhythm, 1, every),
        ),
        "hooks, fixed size": Case(
            f"the cache is cut to its budget {layers} times after every token, not once",
            "a cache at its budget has nothing more to lose: only time is lost",
            *(partial(HookInEveryLayer, model, streaming), window, 1, chunk_size),
        ),
    }


def _put_in_the_wrong_place(model, streaming: StreamingLLM, cut_chunk: int) -> dict[str, Case]:
    """What stays, but with another position or order than it should have."""
    layers, budget = model.config.get_text_config().num_hidden_layers, streaming.budget
    sizes = budget, streaming.window.start_size
    norms = H2OL2.at_budget(*sizes)
    lower = H2OL2.at_budget(*sizes, skip_layers=tuple(range(layers // 2, layers)))
    mixed, ours = Unsorted(norms), partial(_ours, model)
    length = partial(LengthOfLayer0, model, lower)
    return {
        "keys not turned": Case(
            "sinks stand as far away as in the text, not where they are in the cache",
            "the distance to sinks grows with the text, and training knew none beyond its context",
            *(ours(streaming), ours(streaming, "in_cache"), LARGE_CHUNK),
            far=True,
        ),
        "length of layer 0": Case(
            "the next position is what layer 0 holds, not the tokens so far",
            "once layer 0 is full the position stands still while tokens come: their order is lost",
            *(length, ours(lower), cut_chunk),
        ),
        "unsorted, turned": Case(
            "kept tokens lie, and get positions, by score and not by place",
            "keys are turned to places by score, so that order and distance are lost",
            *(ours(mixed, "in_cache"), ours(norms, "in_cache"), cut_chunk),
        ),
        "unsorted, not turned": Case(
            "kept tokens lie by score, not by place, so the last are not the recent ones",
            "the next cut takes the last places for the recent tokens, and may drop recent ones",
            *(ours(mixed), ours(norms), cut_chunk),
        ),
    }
