"""Decoding against transformers' own caches and the machine's limit, on real shapes.

    python benchmarks/decoding.py

Random weights and random contexts: the time of a step depends on shapes only. On a GPU the defaults
are a larger shape and longer contexts, in bfloat16. Writes the tables `decoding`, `decoding_pairs`
and `decoding_cuts` under results/, as CSV and Markdown.
"""

import argparse

import numpy as np
import pandas as pd
import psutil
import torch

from lib import StreamingLLM, load_model, save_table
from lib.cache.baseline import STATIC
from lib.measure.breakdown import beside_dense, breakdown, cut_cost
from lib.measure.limits import decoding_work, share_of_limit
from lib.measure.machine import measure_machine
from lib.measure.rows import BASELINE, rows_of
from lib.measure.stats import mean_ci, over_medians, speedup, summarise, with_interval
from lib.results.provenance import machine_line, run_by_script

STATIC_ROW = "static_cache"
EARLY = 1000  # the token against which a late one is held
CONTEXTS = [512, EARLY, 2048, 8192, 32000]
SHAPES = ["reference", "EleutherAI/pythia-70m", "HuggingFaceTB/SmolLM2-135M"]
GPU_CONTEXTS = [512, EARLY, 8192, 32000, 128000]
GPU_SHAPES = ["EleutherAI/pythia-2.8b"]
# what a page shows of the table
SHOWN = ["shape", "context", "method", "tpot_ms", "speedup", "static_speedup", "limit_%"]
# methods that look at keys or attention, so that their cuts cost
LOOKING = ["fix_l2_low", "h2o_l2", "keydiff", "lagkv", "h2o", "tova", "snapkv"]
BUFFER = 64  # tokens that pile up between two cuts
PAIRED = 3  # repeats of pairs for each of `--repeats`
TABLES = ["steps", "pairs", "cuts"]


def arguments() -> argparse.ArgumentParser:
    gpu = torch.cuda.is_available()
    shapes, contexts = (GPU_SHAPES, GPU_CONTEXTS) if gpu else (SHAPES, CONTEXTS)
    dtypes = ["bfloat16"] if gpu else ["float32", "bfloat16"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=shapes)
    parser.add_argument("--dtypes", nargs="+", default=dtypes, help="of the cuts: the first")
    parser.add_argument("--contexts", nargs="+", type=int, default=contexts)
    parser.add_argument("--cache", type=int, default=512, help="budget in tokens, one of contexts")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def load(shape: str, dtype: str):
    """A model of the shape, with random weights but for the reference model."""
    name = shape if shape == "reference" else f"random:{shape}"
    return load_model(name, dtype=getattr(torch, dtype))[0]


def cuts(shape: str, options: argparse.Namespace) -> pd.DataFrame:
    """One row per method and repeat: what a cut takes."""
    kinds = {"include_baseline": False, "include_recent_only": False}
    methods = rows_of(["streaming", *LOOKING], [options.cache], **kinds)
    runs = cut_cost(load(shape, options.dtypes[0]), methods, BUFFER, options.repeats)
    return runs.assign(shape=shape.split("/")[-1])


def measure(shape: str, dtype: str, options: argparse.Namespace) -> pd.DataFrame:
    """One row per method, context and repeat of one shape."""
    model = load(shape, dtype)
    method = StreamingLLM(4, options.cache - 4)
    strict, lazy = f"streaming_{options.cache}", f"streaming_lazy_{options.cache}"
    methods = {BASELINE: None, STATIC_ROW: STATIC, strict: method, lazy: method}
    how = {"steps": options.steps, "repeats": options.repeats}
    runs = breakdown(model, methods, options.contexts, {lazy: BUFFER}, **how)
    machine = measure_machine(model.device, model.dtype)
    dense = runs.method.isin([BASELINE, STATIC_ROW])
    held = runs.context.where(dense, runs.context.clip(upper=options.cache))
    runs["limit_%"] = [
        100 * share_of_limit(seconds / 1000, decoding_work(model, cached), machine)
        for seconds, cached in zip(runs.total_ms, held, strict=True)
    ]
    print(f"{shape}: {machine}, resident {psutil.Process().memory_info().rss / 2**20:.0f} MiB")
    return runs.assign(shape=f"{shape.split('/')[-1]}, {dtype}")


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Ratios of medians: speed-ups over both dense caches at the same context, and times.

    `against_token_1000` is a step's time over that of the same method at token 1,000.
    """
    place = ["shape", "context"]
    for name, method in (("speedup", BASELINE), ("static_speedup", STATIC_ROW)):
        slower = table[table.method == method]
        table = table.join(speedup(table, "tpot_ms", slower, place, name))
    early, name = table[table.context == EARLY], "against_token_1000"
    columns = [f"{name}{end}" for end in ("", "_q1", "_q3")]
    table[columns] = over_medians(table, "tpot_ms", early, ["shape", "method"]).to_numpy()
    return table


def steps(options: argparse.Namespace) -> None:
    """Save what one step takes, by context."""
    runs = pd.concat([measure(*cell, options) for cell in cells(options)], ignore_index=True)
    runs = runs.rename(columns={"total_ms": "tpot_ms"})
    columns = ["tpot_ms", "bookkeeping_ms", "attention_ms", "limit_%"]
    table = summarise(runs, ["shape", "context", "method"], columns)
    table = with_ratios(table)
    caption = (
        f"One step of decoding, batch 1, by context (random keys, no prefill): speed-up over "
        f"DynamicCache and StaticCache, share of the limit (memory read at the machine's rate). "
        f"Medians and quartiles over n interleaved repeats, ratios of medians. {machine_line()}."
    )
    save_table(table, "decoding", caption, SHOWN)
    print(table[SHOWN].to_string(index=False))


def pairs(options: argparse.Namespace) -> None:
    """Save a step of sinks + window beside one of a DynamicCache that holds as many tokens."""
    strict, lazy = f"streaming_{options.cache}", f"streaming_lazy_{options.cache}"
    methods = dict.fromkeys((strict, lazy), StreamingLLM(4, options.cache - 4))
    contexts = [context for context in options.contexts if context >= options.cache]
    rows = []
    for shape, dtype in cells(options):
        model = load(shape, dtype)
        repeats = PAIRED * options.repeats
        runs = beside_dense(model, methods, contexts, {lazy: BUFFER}, options.steps, repeats)
        for (context, method), part in runs.groupby(["context", "method"], sort=False):
            row = {"shape": f"{shape.split('/')[-1]}, {dtype}", "context": context}
            row |= {"method": method, "step_ms": part.step_ms.median()}
            row |= {"dense_ms": part.dense_ms.median()}
            ratio = np.exp(mean_ci(np.log(part.step_ms / part.dense_ms)))
            rows.append(row | with_interval("ratio", map(float, ratio)) | {"n": len(part)})
    table = pd.DataFrame(rows)
    caption = (
        f"A step with sinks + window {options.cache} beside a step of a DynamicCache that holds as "
        f"many tokens, in turns step by step, batch 1: medians, and the ratio of the two with its "
        f"95% interval over n repeats of {options.steps} steps. {machine_line()}."
    )
    save_table(table, "decoding_pairs", caption)
    print(table.to_string(index=False))


def cells(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Which shapes are measured in which types; the reference model is shipped in float32."""
    return [
        (shape, dtype)
        for shape in options.shapes
        for dtype in options.dtypes
        if (shape, dtype) != ("reference", "bfloat16")
    ]


def cut_table(options: argparse.Namespace) -> None:
    """Save what a cut takes."""
    every = pd.concat([cuts(shape, options) for shape in options.shapes], ignore_index=True)
    table = summarise(every, ["shape", "method"], ["step_ms", "cut_ms", "cut_%"])
    caption = (
        f"A cut in decoding, once in {BUFFER + 1} steps: milliseconds of a step that cuts nothing, "
        f"what the step with the cut takes more, and that in percent of the steps between. "
        f"Batch 1, {options.dtypes[0]}, medians and quartiles over n interleaved repeats. "
        f"{machine_line()}."
    )
    save_table(table, "decoding_cuts", caption)
    print(table.to_string(index=False))


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    run_by_script("benchmarks/decoding.py", parser, options)
    for name, save in zip(TABLES, (steps, pairs, cut_table), strict=True):
        if name in options.tables:
            save(options)


if __name__ == "__main__":
    main()
