"""Speed: time to first token, time per output token, throughput and memory, over repeats."""

from collections.abc import Mapping
from contextlib import nullcontext

import pandas as pd
import torch

from .compressors import Compressor
from .compressors.base import require_int
from .generation import generate
from .limits import Machine, decoding_work, measure_machine, share_of_limit
from .progress import progress
from .watch import PeakMemory, watched_attention


def measure(
    model,
    methods: Mapping[str, Compressor | None],
    context_lengths: list[int],
    new_tokens: int = 32,
    repeats: int = 3,
    seed: int = 0,
    buffers: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """One row per repeat, context length and method, on random tokens, batch 1.

    Columns: `prefill` (how the prompt was read, "dense" or "streamed"), `ttft_s`, `tpot_ms`,
    `throughput` (tokens/s of decoding), `attention_ms` (of a token's time, inside the attention),
    `cache_mib` (allocated for keys and values), `peak_mib` (how far memory grew; first repeat
    only), `cache_length` (tokens held at the end, mean over layers) and `limit_%`, the share of the
    least time in which the machine can read what a token needs. `buffers` gives a method's `buffer`
    where it has one. Repeats are the outer loop, so that drift of the machine hits all methods
    alike; a run of each method before them warms up.
    """
    require_int("new_tokens", new_tokens, 2)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (max(context_lengths),), generator=generator)
    buffer = {name: (buffers or {}).get(name, 0) for name in methods}
    for name, method in methods.items():
        generate(model, ids[: min(context_lengths)], method, 4, buffer=buffer[name])
    machine = measure_machine(model.device, model.dtype)
    runs = [
        (repeat, length, name)
        for repeat in range(repeats)
        for length in context_lengths
        for name in methods
    ]
    rows = []
    for repeat, length, name in progress(runs, desc="speed"):
        streamed = methods[name] is not None and methods[name].window
        row = {"context": length, "method": name, "prefill": "streamed" if streamed else "dense"}
        peak = PeakMemory(model.device)
        with peak if repeat == 0 else nullcontext():  # to watch it makes it slower
            run = _run(model, ids[:length], methods[name], new_tokens, buffer[name], machine)
        rows.append(row | {"repeat": repeat, "peak_mib": peak.mib} | run)
    return pd.DataFrame(rows)


def _run(model, ids, method, new_tokens: int, buffer: int, machine: Machine) -> dict[str, float]:
    """One generation and what it took."""
    with watched_attention(model) as attention:
        result = generate(model, ids, method, new_tokens, buffer=buffer)
    layers, steps = len(result.layer_lengths), new_tokens - 1
    decoding = attention.seconds[-steps * layers :]
    held = result.cache_lengths[len(result.cache_lengths) // 2]
    return {
        "ttft_s": result.ttft,
        "tpot_ms": 1000 * result.tpot,
        "throughput": result.throughput,
        "attention_ms": 1000 * sum(decoding) / steps,
        "cache_mib": result.cache_bytes / 2**20,
        "cache_length": sum(result.layer_lengths) / layers,
        "limit_%": 100 * share_of_limit(result.tpot, decoding_work(model, held), machine),
    }


def change_against(runs: pd.DataFrame, column: str, baseline: str) -> pd.Series:
    """Change of `column` against `baseline` in percent, repeat by repeat at the same context."""
    keys = ["context", "repeat"]
    base = runs[runs.method == baseline].set_index(keys)[column]
    own = runs.set_index(keys)[column]
    return pd.Series(100 * (own.to_numpy() / base.reindex(own.index).to_numpy() - 1), runs.index)
