"""Speed: time to first token, time per output token, throughput and memory, over repeats."""

from collections.abc import Mapping
from itertools import product

import pandas as pd
import torch

from lib.cache.baseline import streams
from lib.compressors import Compressor
from lib.progress import progress
from lib.require import require_int

from .generation import generate
from .instruments import watched_attention
from .limits import decoding_work, share_of_limit
from .machine import Machine, measure_machine
from .memory import PeakMemory


def measure(
    model,
    methods: Mapping[str, Compressor | str | None],
    context_lengths: list[int],
    new_tokens: int = 32,
    repeats: int = 3,
    seed: int = 0,
    buffers: Mapping[str, int] | None = None,
    watch_memory: bool = False,
) -> pd.DataFrame:
    """One row per repeat, context length and method, on random tokens, batch 1.

    `methods` are those of `lib.generate`, by the names of their rows. Columns: `prefill` (how the
    prompt was read, "dense" or "streamed"), `ttft_s`, `tpot_ms`, `throughput` (tokens/s of
    decoding), `attention_ms` (of a token's time, inside the attention), `cache_mib` (the most
    allocated between two steps), `cache_length` (tokens held, mean over steps and layers) and
    `limit_%`, the share of the least time in which the machine can read what a token needs.
    `buffers` gives a method's `buffer` where it has one. Repeats are the outer loop, so that drift
    of the machine hits all methods alike. A run of each method before them warms up; with
    `watch_memory` one at every length, which says how far memory grew, `peak_mib`.
    """
    require_int("new_tokens", new_tokens, 2)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (max(context_lengths),), generator=generator)
    buffer = {name: (buffers or {}).get(name, 0) for name in methods}
    machine = measure_machine(model.device, model.dtype)
    untimed = context_lengths if watch_memory else [min(context_lengths)]
    peaks = {}
    for length, name in progress(list(product(untimed, methods)), desc="warm-up"):
        with PeakMemory(model.device) as peak:
            generate(model, ids[:length], methods[name], new_tokens, buffer=buffer[name])
        peaks[length, name] = {"peak_mib": peak.mib} if watch_memory else {}
    runs, rows = list(product(range(repeats), context_lengths, methods)), []
    for repeat, length, name in progress(runs, desc="speed"):
        prefill = "streamed" if streams(methods[name]) else "dense"
        row = {"context": length, "method": name, "prefill": prefill}
        row |= {"repeat": repeat} | peaks.get((length, name), {})
        rows.append(
            row | _run(model, ids[:length], methods[name], new_tokens, buffer[name], machine)
        )
    return pd.DataFrame(rows)


def _run(model, ids, method, new_tokens: int, buffer: int, machine: Machine) -> dict[str, float]:
    """One generation and what it took."""
    with watched_attention(model) as attention:
        result = generate(model, ids, method, new_tokens, buffer=buffer)
    layers, steps = model.config.get_text_config().num_hidden_layers, new_tokens - 1
    decoding = attention.seconds[-steps * layers :]
    held = result.cache_lengths[len(result.cache_lengths) // 2]
    return {
        "ttft_s": result.ttft,
        "tpot_ms": 1000 * result.tpot,
        "throughput": result.throughput,
        "attention_ms": 1000 * sum(decoding) / steps,
        "cache_mib": result.cache_bytes / 2**20,
        "cache_length": result.mean_length,
        "limit_%": 100 * share_of_limit(result.tpot, decoding_work(model, held), machine),
    }
