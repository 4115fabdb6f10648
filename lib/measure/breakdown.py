"""Where the time of a decoding step goes: attention, the cache's bookkeeping, and the rest."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from statistics import median

import pandas as pd
import torch
from transformers import Cache

from lib.cache.baseline import LARGE_CHUNK, make_cache, streams
from lib.cache.compressed import CompressedCache
from lib.compressors import Compressor
from lib.progress import progress
from lib.require import require, require_int

from .instruments import Stopwatch, watched_attention
from .limits import cache_shape
from .machine import now


@torch.no_grad()
def breakdown(
    model,
    methods: Mapping[str, Compressor | str | None],
    context_lengths: list[int],
    buffers: Mapping[str, int] | None = None,
    steps: int = 32,
    repeats: int = 3,
    warmup: int = 4,
) -> pd.DataFrame:
    """One row per repeat, context length and method: milliseconds of a step of one token, batch 1.

    `total_ms` is the model's forward, medians over `steps` as in `lib.generate`'s `tpot`;
    `attention_ms` is inside the attention function, `bookkeeping_ms` inside the cache, and
    `rest_ms` is what these leave of the total. Contexts are random keys and values, since the time
    of a step depends on their shapes only. `buffers` gives a method's `buffer` where it has one.
    """
    for name, value, low in (("steps", steps, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        require_int(name, value, low)
    runs = [
        (repeat, length, name)
        for repeat in range(repeats)  # outermost: drift of the machine hits all methods alike
        for length in context_lengths
        for name in methods
    ]
    rows = []
    for repeat, length, name in progress(runs, desc="breakdown"):
        buffer, room = (buffers or {}).get(name, 0), 2 * (warmup + steps)
        cache = filled_cache(model, methods[name], length, buffer, room=room)
        row = {"method": name, "context": length, "repeat": repeat}
        rows.append(row | _parts(model, cache, steps, warmup))
    return pd.DataFrame(rows)


def _parts(model, cache: Cache, steps: int, warmup: int) -> dict[str, float]:
    """Medians in milliseconds; plain and timed steps take turns on the same cache."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    totals, watches = [], []
    for _ in range(warmup + steps):
        began = now(model.device)
        model(input_ids=ids, past_key_values=cache)
        totals.append(now(model.device) - began)
        watches.append(timed_step(model, ids, cache)[1].seconds)
    total = 1000 * median(totals[warmup:])
    attention = 1000 * median(seconds["attention"] for seconds in watches[warmup:])
    bookkeeping = 1000 * median(seconds["bookkeeping"] for seconds in watches[warmup:])
    return {
        "total_ms": total,
        "attention_ms": attention,
        "bookkeeping_ms": bookkeeping,
        "rest_ms": total - attention - bookkeeping,
    }


@torch.no_grad()
def beside_dense(
    model,
    methods: Mapping[str, Compressor],
    context_lengths: list[int],
    buffers: Mapping[str, int] | None = None,
    steps: int = 16,
    repeats: int = 9,
) -> pd.DataFrame:
    """One row per context length, method and repeat: a step beside a DynamicCache's, batch 1.

    `step_ms` and `dense_ms` are medians over `steps` of one token, with a method and with a
    DynamicCache that holds as many tokens. The two take turns step by step, so that whatever else
    the machine does hits both; a repeat before the first warms up. Contexts are those of
    `breakdown`.
    """
    require_int("steps", steps, 1)
    require_int("repeats", repeats, 1)
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    rows = []
    for length, name in progress(list(product(context_lengths, methods)), desc="beside dense"):
        cache = filled_cache(model, methods[name], length, (buffers or {}).get(name, 0))
        dense = filled_cache(model, None, max(cache.cached_lengths))
        for repeat in range(-1, repeats):
            times = {id(cache): [], id(dense): []}
            for step in range(steps):
                for one in (cache, dense) if step % 2 else (dense, cache):
                    began = now(ids.device)
                    model(input_ids=ids, past_key_values=one)
                    times[id(one)].append(1000 * (now(ids.device) - began))
                if over := dense.get_seq_length() - max(cache.cached_lengths):
                    dense.crop(-over)
            row = {"context": length, "method": name, "repeat": repeat}
            row |= {"step_ms": median(times[id(cache)]), "dense_ms": median(times[id(dense)])}
            rows.append(row)
    table = pd.DataFrame(rows)
    return table[table.repeat >= 0].reset_index(drop=True)


@torch.no_grad()
def cut_cost(
    model, methods: Mapping[str, Compressor], buffer: int = 64, repeats: int = 3
) -> pd.DataFrame:
    """One row per repeat and method: what a cut costs, once in `buffer` + 1 steps, batch 1.

    `step_ms` is the median of a step that cuts nothing, `cut_ms` what the one that cuts takes more,
    `cut_%` that in percent of the steps between two cuts. Prompts are random tokens.
    """
    require_int("buffer", buffer, 2)
    require_int("repeats", repeats, 1)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    rows = []
    runs = [(repeat, name) for repeat in range(repeats) for name in methods]  # drift hits all alike
    for repeat, name in progress(runs, desc="cuts"):
        cache = make_cache(model, methods[name], buffer)
        size = (1, int(methods[name].budget))
        prompt = torch.randint(vocabulary, size, generator=generator).to(model.device)
        model(input_ids=prompt, past_key_values=cache)
        plain, cuts = [], []
        for _ in range(2 * (buffer + 1)):  # two rhythms: the first warms up
            held, began = sum(cache.cached_lengths), now(model.device)
            model(input_ids=prompt[:, :1], past_key_values=cache)
            took = 1000 * (now(model.device) - began)
            (plain if sum(cache.cached_lengths) > held else cuts).append(took)
        require(
            len(cuts) == 2, "method", methods[name], f"one that cuts once in {buffer + 1} steps"
        )
        between = plain[-buffer:]
        row = {"method": name, "repeat": repeat, "step_ms": median(between)}
        row["cut_ms"] = cuts[-1] - row["step_ms"]
        rows.append(row | {"cut_%": 100 * row["cut_ms"] / sum(between)})
    return pd.DataFrame(rows)


def timed_step(model, ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Stopwatch]:
    """Logits (B, n, V) of one step and its stopwatch. The timers cost time: not for the total."""
    watch = Stopwatch(model.device)
    watched = [name for name in ("step", "update") if hasattr(cache, name)]
    for name in watched:  # on this cache alone, in front of its class's
        setattr(cache, name, partial(watch.run, "bookkeeping", getattr(cache, name)))
    try:
        with watched_attention(model) as attention:
            output = model(input_ids=ids, past_key_values=cache)
    finally:
        for name in watched:
            delattr(cache, name)
    watch.seconds["attention"] = sum(attention.seconds)
    return output.logits, watch


def filled_cache(
    model,
    method: Compressor | str | None,
    length: int,
    buffer: int = 0,
    room: int = 0,
) -> Cache:
    """The cache of a `method` of `lib.generate` that has seen `length` random keys and values.

    All layers get the same ones, and no model runs. They come in as `lib.generate` lets a prompt
    in: by chunks where a window streams, else at once, and the cache cuts and turns them as ever. A
    static one has `room` for more.
    """
    require_int("context", length, 1)
    layers, heads, width = cache_shape(model)
    generator = torch.Generator(model.device).manual_seed(0)
    like = {"generator": generator, "device": model.device, "dtype": model.dtype}
    keys, values = (torch.randn(1, heads, length, width, **like) for _ in range(2))
    cache = make_cache(model, method, buffer, room=length + room)
    ours = isinstance(cache, CompressedCache)
    scored = ours and cache.store.scored
    what = "one that does not look at attention: there are no queries"
    require(not scored, "method", method, what)
    chunk = LARGE_CHUNK if streams(method) else length
    for key, value in zip(keys.split(chunk, dim=2), values.split(chunk, dim=2), strict=True):
        if ours:
            cache.step(key.shape[2], model.device)
        for layer in range(layers):
            cache.update(key, value, layer)
    return cache
