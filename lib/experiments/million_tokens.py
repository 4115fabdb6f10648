"""One long stream through a bounded cache: perplexity, memory and pace along the way."""

import time

import numpy as np
import pandas as pd
import psutil
import torch

from lib.cache.baseline import cache_bytes
from lib.compressors import Compressor
from lib.measure.limits import evaluation_flops
from lib.measure.perplexity import evaluate
from lib.measure.stats import mean_ci
from lib.require import require, require_int

SHORTER = 16  # stretches into which each is divided for its interval


def follow_stream(
    model, ids: torch.Tensor, compressor: Compressor, chunk_size: int = 512, parts: int = 40
) -> pd.DataFrame:
    """`evaluate` a stream `ids` (T,); one row for each of `parts` stretches of it.

    Columns: `position` (tokens up to the stretch's end), `ppl` of the stretch with its 95% interval
    over `n` shorter ones, `running_ppl` of all up to it, `cache_mib` and `resident_mib` (of the
    whole process) at its end, `tokens_per_s`.
    """
    require_int("parts", parts, 1)
    chunks = -(-(len(ids) - 1) // chunk_size)
    require(parts <= chunks, "parts", parts, f"at most the number of chunks, {chunks}")
    ends = (np.linspace(0, chunks, parts + 1)[1:].round() * chunk_size).astype(int)
    process, rows, began = psutil.Process(), [], time.perf_counter()

    def note(done: int, cache) -> None:
        if done >= min(ends[len(rows)], len(ids) - 1):
            memory = {"cache_mib": cache_bytes(cache), "resident_mib": process.memory_info().rss}
            memory = {name: size / 2**20 for name, size in memory.items()}
            rows.append({"position": done, **memory, "seconds": time.perf_counter() - began})

    nll = evaluate(model, ids, compressor, chunk_size, desc="stream", after_chunk=note).nll
    nll, table = nll.double().numpy(), pd.DataFrame(rows)
    before = table.position.shift(fill_value=0)
    stretches = [nll[low:high] for low, high in zip(before, table.position, strict=True)]
    estimates = np.exp([_interval(stretch) for stretch in stretches]).T
    for place, name in enumerate(("ppl", "ppl_low", "ppl_high"), start=1):
        table.insert(place, name, estimates[place - 1])
    table.insert(4, "n", [min(SHORTER, len(stretch)) for stretch in stretches])
    table.insert(5, "running_ppl", np.exp(nll.cumsum(0)[table.position - 1] / table.position))
    seconds = table.pop("seconds")
    return table.assign(tokens_per_s=(table.position - before) / seconds.diff().fillna(seconds))


def _interval(nll: np.ndarray) -> tuple[float, float, float]:
    """Mean of `nll` (n,) and its interval over as many shorter stretches as there can be."""
    parts = np.array_split(nll, min(SHORTER, len(nll)))
    _, low, high = mean_ci([part.mean() for part in parts])
    return float(nll.mean()), low, high


def pace(
    model,
    ids: torch.Tensor,
    compressor: Compressor,
    chunk_sizes: list[int],
    repeats: int = 3,
    loop_tokens: int = 500,
) -> pd.DataFrame:
    """Tokens per second of `evaluate` at each of `chunk_sizes`, over repeats, interleaved.

    Columns `chunk_size`, `repeat`, `tokens_per_s`, `flop_per_s` (the FLOPs that the text's tokens
    need, per second) and `max_difference`, the largest difference of a token's NLL
    to the first of `chunk_sizes`, in nats. Chunks of one token get only `loop_tokens` of the text.
    """
    results, rows = {}, []
    for repeat in range(-1, repeats):  # the first round warms up
        for chunk_size in chunk_sizes:
            part = ids[: loop_tokens + 1] if chunk_size == 1 else ids
            began = time.perf_counter()
            nll = results[chunk_size] = evaluate(model, part, compressor, chunk_size).nll
            seconds = time.perf_counter() - began
            first = results[chunk_sizes[0]]
            both = min(len(nll), len(first))
            row = {"chunk_size": chunk_size, "repeat": repeat, "tokens_per_s": len(nll) / seconds}
            row["flop_per_s"] = evaluation_flops(model, len(part), compressor.budget) / seconds
            row["max_difference"] = (nll[:both] - first[:both]).abs().max().item()
            rows.append(row)
    return pd.DataFrame([row for row in rows if row["repeat"] >= 0])
