"""Mistakes that KV-cache projects made, on purpose, to measure what each costs. Use none of them.

Each is a cache or a compressor that does one thing wrong; its docstring names it. `cases` pairs
each with a right way that differs from it in that thing only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import Cache, DynamicCache

from .cache import CompressedCache
from .checks import check_ids
from .comparison import ratio_table
from .compressors import Compressor, FixSizeL2, L2Compress, StreamingLLM
from .compressors.base import Held, gather_tokens, require
from .compressors.l2_compress import key_norms
from .hooks import Announced, attach
from .memory import held_lengths
from .perplexity import _run
from .progress import progress
from .stats import ppl_ci
from .steps import additive


class DenseInChunk(DynamicCache, Announced):
    """Mistake: a chunk is cut only after it, so that a token sees all of its chunk before it.

    Perplexity then depends on the chunk, and flatters: with a chunk of the whole text it is that of
    dense attention. In chunks of one token this is right, with keys where they were rotated.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__()
        self.compressor = compressor
        self.number = model.config.get_text_config().num_hidden_layers
        self.dtype = model.dtype
        self.seen = 0
        self.asked = [0] * self.number  # per layer: how often the method was asked
        self.cuts = [0] * self.number  # and how often it cut

    def step(self, n: int, device="cpu", attention_mask=None, attention: str = "sdpa") -> dict:
        position_ids = torch.arange(self.seen, self.seen + n, device=device)[None]
        return {"past_key_values": self, "position_ids": position_ids}

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        states = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.after_update(layer_idx)
        if layer_idx == self.number - 1:
            self.seen += key_states.shape[2]
        return states

    def after_update(self, layer_idx: int) -> None:
        """Called when a layer has the new tokens."""
        self.compress(layer_idx)

    def compress(self, layer_idx: int) -> None:
        """Cut one layer."""
        layer = self.layers[layer_idx]
        held = Held(layer.keys, layer.values, layer_idx, self.number)
        index = self.compressor.keep(held)
        self.asked[layer_idx] += 1
        if index is not None and index.shape[-1] < held.length:
            self.cuts[layer_idx] += 1
            layer.keys = gather_tokens(layer.keys, index)
            layer.values = gather_tokens(layer.values, index)


class EagerEviction(DenseInChunk):
    """Mistake: cutting before attention, so that what was cut is missing in the current step.

    Token by token the window is one token short; in a chunk, or a prompt, longer than the window a
    token does not even see itself. For position-only methods.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__(model, compressor)
        window = compressor.window  # with no sink a token of a long chunk would see nothing at all
        ok = window is not None and window.start_size > 0
        require(ok, "compressor", compressor, "a position-only method with sinks")
        self.held = torch.empty(0, dtype=torch.long)  # indices in the text

    def step(self, n: int, device="cpu", attention_mask=None, attention: str = "sdpa") -> dict:
        kwargs = super().step(n, device)
        queries = kwargs["position_ids"][0]
        held = torch.cat((self.held.to(device), queries))
        index = self.compressor.keep(Held(*[held[None, None, :, None]] * 2, 0, self.number))
        self.held = held if index is None else held[index]
        visible = self.held <= queries[:, None]
        return kwargs | {"attention_mask": additive(visible[None], self.dtype)}

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        return layer.keys, layer.values


class HookInEveryLayer(DenseInChunk):
    """Mistake: a hook on every layer's attention compresses the whole cache, at every step.

    A method that keeps a share is then applied as many times as there are layers, at every token.
    Only single tokens can be fed: within a step layers hold different numbers of tokens.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__(model, compressor)
        attentions = [module for module in model.modules() if hasattr(module, "layer_idx")]
        self.handles = [module.register_forward_hook(self._hook) for module in attentions]

    def _hook(self, *args) -> None:
        for layer_idx in range(len(self.layers)):
            self.compress(layer_idx)

    def after_update(self, layer_idx: int) -> None:
        pass

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


class LengthOfLayer0(CompressedCache):
    """Mistake: the next position is the number of tokens that layer 0 holds.

    transformers does just this where no positions are given (`get_seq_length()` of layer 0). Once
    layer 0 is cut, the position stands still and the order of the text is lost in all layers.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__(model, compressor, positions="original")

    def step(self, n: int, device="cpu", *args, **kwargs) -> dict:
        held = self.cached_lengths[0]
        position_ids = torch.arange(held, held + n, device=device)[None]
        return super().step(n, device, *args, **kwargs) | {"position_ids": position_ids}


@dataclass
class Unsorted(Compressor):
    """Mistake: what `topk` gives is not sorted, so the cache holds its tokens by score.

    At the next cut the first places are not the sinks and the last ones are not the recent tokens;
    where kept tokens are given positions in their order, positions are shuffled at once.
    """

    name = "unsorted"
    paper = "none"
    inner: Compressor

    @property
    def budget(self) -> int | None:
        return self.inner.budget

    @classmethod
    def at_budget(cls, budget: int, *args, **kwargs):
        return cls(FixSizeL2.at_budget(budget, *args, **kwargs))

    def keep(self, held: Held) -> torch.Tensor | None:
        index = self.inner.keep(held)
        if index is None:
            return None
        norms = key_norms(held.keys)
        index = index.expand(*norms.shape[:2], -1)
        order = norms.gather(-1, index).argsort(dim=-1, descending=True, stable=True)
        return index.gather(-1, order)


@dataclass
class Run:
    """What `run` returns for texts (B, T)."""

    nll: torch.Tensor  # nats per predicted token, (B, T - 1)
    tokens_per_s: np.ndarray  # of each forward pass of a whole chunk, all texts together
    held: float  # tokens held at the end, mean over layers
    asked: int  # how often the method was asked about some layer; 0 where that is not counted
    cuts: int  # how often some layer was cut
    chunk_size: int


@torch.no_grad()
def run(model, ids: torch.Tensor, make: Callable[[], Cache], chunk_size: int = 1) -> Run:
    """Evaluate `ids` (B, T) with the cache that `make` makes, as `lib.evaluate` does with ours."""
    ids, cache = check_ids(model, ids, 2), make()
    attach(model)
    ends = [time.perf_counter()]
    try:
        nll, _ = _run(
            model,
            ids,
            chunk_size,
            lambda n: {"past_key_values": cache},
            lambda done: ends.append(time.perf_counter()),
            None,
        )
    finally:
        if isinstance(cache, HookInEveryLayer):
            cache.close()
    whole = (ids.shape[1] - 1) // chunk_size
    mistaken = isinstance(cache, DenseInChunk)
    return Run(
        nll=nll,
        tokens_per_s=len(ids) * chunk_size / np.diff(ends)[: max(whole, 1)],
        held=float(np.mean(held_lengths(cache))),
        asked=sum(cache.asked) if mistaken else 0,
        cuts=max(cache.cuts) if mistaken else cache.evictions,
        chunk_size=chunk_size,
    )


@dataclass
class Case:
    """A mistake and its right way, and the chunks in which each is fed."""

    why: str
    wrong: Callable[[], Cache]
    right: Callable[[], Cache]
    chunk_size: int
    right_chunk_size: int
    far: bool = False  # shows only on long texts


def cases(model, cache: int, start_size: int, chunk_size: int, cut_chunk: int) -> dict[str, Case]:
    """All mistakes at a budget of `cache` tokens, by name.

    `chunk_size` is that of position-only methods, `cut_chunk` that of methods that look at keys.
    """
    layers = model.config.get_text_config().num_hidden_layers
    streaming = StreamingLLM(start_size, cache - start_size)
    share = L2Compress(0.8, 0, ())
    norms = FixSizeL2(cache, 0.5, "keep_high", ())
    lower = FixSizeL2(cache, 0.5, "keep_high", tuple(range(layers // 2, layers)))

    def ours(method, positions="original"):
        return lambda: CompressedCache(model, method, positions=positions)

    def wrong(mistake, method):
        return lambda: mistake(model, method)

    one, many, cut = (1, 1), (chunk_size, chunk_size), (cut_chunk, cut_chunk)
    window, quarter = ours(streaming), max(cache // 4, 1)
    eager, dense = wrong(EagerEviction, streaming), wrong(DenseInChunk, streaming)
    hooked, fixed = wrong(HookInEveryLayer, share), wrong(HookInEveryLayer, streaming)
    length = wrong(LengthOfLayer0, lower)
    mixed = Unsorted(norms)
    return {
        "cut before attention": Case(
            "the step's own tokens are gone before they are looked at", eager, window, *many
        ),
        "dense within the chunk": Case(
            "tokens see more than the budget: too good, and by chunk", dense, window, *many
        ),
        "hooks, share kept": Case(
            f"80% of the cache, meant every {quarter} tokens, by every layer at every token",
            *(hooked, ours(share), 1, quarter),
        ),
        "hooks, fixed size": Case("cutting twice to one size changes nothing", fixed, window, *one),
        "keys not turned": Case(
            "sinks stand ever farther away, beyond trained distances",
            *(window, ours(streaming, "in_cache"), 512, 512, True),
        ),
        "length of layer 0": Case(
            "the position stands still, order is lost", length, ours(lower), *cut
        ),
        "unsorted, turned": Case(
            "positions are given by rank of the score",
            *(ours(mixed, "in_cache"), ours(norms, "in_cache"), *cut),
        ),
        "unsorted, not turned": Case(
            "at the next cut the last places are not the recent tokens",
            *(ours(mixed), ours(norms), *cut),
        ),
    }


def run_cases(
    model, near: torch.Tensor, far: torch.Tensor, chosen: Mapping[str, Case]
) -> dict[str, tuple[Run, Run]]:
    """Each mistake and its right way on the texts `near` or `far` (B, T), by name."""
    done: dict[tuple, Run] = {}

    def once(make, chunk_size: int, is_far: bool) -> Run:
        key, texts = (make, chunk_size, is_far), far if is_far else near
        if key not in done:
            run(model, texts[:, : chunk_size + 1], make, chunk_size)  # warms up
            done[key] = run(model, texts, make, chunk_size)
        return done[key]

    return {
        name: (
            once(case.wrong, case.chunk_size, case.far),
            once(case.right, case.right_chunk_size, case.far),
        )
        for name, case in progress(chosen.items(), desc="mistakes")
    }


def mistake_table(
    pairs: Mapping[str, tuple[Run, Run]], chosen: Mapping[str, Case], first: int
) -> pd.DataFrame:
    """A row per mistake: perplexity from token `first` on, its ratio to the right way, speed.

    95% intervals over texts, paired by text for the ratio; tokens/s of all texts together, median
    and quartiles over forward passes.
    """
    nll = {name: tuple(one.nll[:, first:] for one in pair) for name, pair in pairs.items()}
    table = ratio_table(nll).rename(columns={"method": "mistake"})
    right = [ppl_ci(other)[0] for _, other in nll.values()]
    table.insert(4, "right_ppl", right)
    rows = []
    for name, (wrong, other) in pairs.items():
        low, middle, high = np.quantile(wrong.tokens_per_s, (0.25, 0.5, 0.75))
        row = {"cuts": wrong.cuts, "right_cuts": other.cuts, "tokens_held": wrong.held}
        row |= {"tokens_per_s": middle, "tokens_per_s_q1": low, "tokens_per_s_q3": high}
        row |= {"right_tokens_per_s": float(np.median(other.tokens_per_s))}
        row |= {"chunk_size": wrong.chunk_size, "right_chunk_size": other.chunk_size}
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
        "exact": lambda: CompressedCache(model, method, positions="original"),
        "dense within the chunk": lambda: DenseInChunk(model, method),
        "cut before attention": lambda: EagerEviction(model, method),
    }
    exact = run(model, texts, ways["exact"], max(chunk_sizes)).nll[:, first:]
    pairs = {
        (way, chunk_size): (run(model, texts, make, chunk_size).nll[:, first:], exact)
        for way, make in progress(ways.items(), desc="chunks")
        for chunk_size in chunk_sizes
    }
    places = pd.DataFrame(list(pairs), columns=["way", "chunk_size"])
    return pd.concat((places, ratio_table(pairs).drop(columns="method")), axis=1)
