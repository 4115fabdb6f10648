"""Speed: time to first token, time per output token, throughput and memory, over repeats."""

from collections.abc import Mapping

import pandas as pd
import torch

from .compressors import Compressor
from .generation import generate
from .progress import progress


def measure(
    model,
    methods: Mapping[str, Compressor | None],
    context_lengths: list[int],
    new_tokens: int = 32,
    repeats: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per repeat, context length and method, on random tokens, batch 1.

    Columns: `ttft_s`, `tpot_ms`, `throughput` (tokens/s of decoding), `cache_mib` (allocated for
    keys and values), `cache_length` (tokens held). Repeats are the outer loop, so that drift of the
    machine hits all methods alike; a run of each method before them warms up.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (max(context_lengths),), generator=generator)
    for method in methods.values():
        generate(model, ids[: min(context_lengths)], method, max_new_tokens=4)
    runs = [
        (repeat, length, name)
        for repeat in range(repeats)
        for length in context_lengths
        for name in methods
    ]
    rows = []
    for repeat, length, name in progress(runs, desc="speed"):
        result = generate(model, ids[:length], methods[name], max_new_tokens=new_tokens)
        rows.append(
            {
                "context": length,
                "method": name,
                "repeat": repeat,
                "ttft_s": result.ttft,
                "tpot_ms": 1000 * result.tpot,
                "throughput": result.throughput,
                "cache_mib": result.cache_bytes / 2**20,
                "cache_length": result.cache_lengths[-1],
            }
        )
    return pd.DataFrame(rows)


def change_against(runs: pd.DataFrame, column: str, baseline: str) -> pd.Series:
    """Change of `column` against `baseline` in percent, repeat by repeat at the same context."""
    keys = ["context", "repeat"]
    base = runs[runs.method == baseline].set_index(keys)[column]
    own = runs.set_index(keys)[column]
    return pd.Series(100 * (own.to_numpy() / base.reindex(own.index).to_numpy() - 1), runs.index)
