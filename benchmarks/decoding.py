"""Decoding against transformers' DynamicCache and the machine's limit, on real shapes.

    python benchmarks/decoding.py

Random weights and random contexts: the time of a step depends on shapes only. Writes
`tables/decoding.csv` and `.md` under results/.
"""

import argparse
import json
import os

import pandas as pd
import psutil

from lib import StreamingLLM, load_model, save_table
from lib.measure.breakdown import breakdown
from lib.measure.limits import decoding_work, measure_machine, share_of_limit
from lib.measure.stats import over_medians, summarise
from lib.results.provenance import machine_line

BASELINE = "baseline"
EARLY = 1000  # the token against which a late one is held


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["reference", "pythia-70m", "pythia-410m"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--late", type=int, default=32000, help="a token far along the stream")
    parser.add_argument("--cache", type=int, default=512, help="budget in tokens")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def measure(shape: str, options: argparse.Namespace) -> pd.DataFrame:
    """One row per method, context and repeat of one shape."""
    model, _ = load_model(shape if shape == "reference" else f"random:EleutherAI/{shape}")
    method = StreamingLLM(4, options.cache - 4)
    strict, lazy = f"streaming_{options.cache}", f"streaming_lazy_{options.cache}"
    methods, buffers = {BASELINE: None, strict: method, lazy: method}, {lazy: 64}
    common = {"steps": options.steps, "repeats": options.repeats}
    runs = breakdown(model, methods, options.contexts, buffers, **common)
    # bookkeeping against a step with as many cached tokens and no compression
    same = runs[(runs.method == BASELINE) & (runs.context == options.cache)]
    if len(same):
        share = runs.bookkeeping_ms / runs.repeat.map(same.set_index("repeat").total_ms)
        runs["bookkeeping_%"] = 100 * share
    streamed = {name: methods[name] for name in (strict, lazy)}
    early_late = breakdown(model, streamed, [EARLY, options.late], buffers, **common)
    runs = pd.concat([runs, early_late], ignore_index=True)
    machine = measure_machine(model.device, model.dtype)
    held = runs.context.where(runs.method == BASELINE, runs.context.clip(upper=options.cache))
    runs["limit_%"] = [
        100 * share_of_limit(seconds / 1000, decoding_work(model, cached), machine)
        for seconds, cached in zip(runs.total_ms, held, strict=True)
    ]
    print(f"{shape}: {machine}, resident {psutil.Process().memory_info().rss / 2**20:.0f} MiB")
    return runs.assign(shape=shape)


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Speed-ups over the baseline and times over those at token 1,000, both of medians."""
    ends = ["", "_q1", "_q3"]
    base, early = table[table.method == BASELINE], table[table.context == EARLY]
    slower = over_medians(table, "tpot_ms", base, ["shape", "context"])
    later = over_medians(table, "tpot_ms", early, ["shape", "method"])
    table[[f"speedup{end}" for end in ends]] = 1 / slower[["ratio", "ratio_q3", "ratio_q1"]]
    table[[f"against_token_1000{end}" for end in ends]] = later
    return table


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Medians of the streaming rows, and the baseline's time of the same context beside them."""
    base = table[table.method == BASELINE].set_index(["shape", "context"]).tpot_ms
    rows = table[table.method != BASELINE]
    keys = pd.MultiIndex.from_frame(rows[["shape", "context"]])
    rows = rows.assign(baseline_ms=base.reindex(keys).to_numpy())
    columns = ["n", "tpot_ms", "baseline_ms", "speedup", "against_token_1000"]
    return rows[["shape", "context", "method", *columns, "bookkeeping_%", "limit_%"]]


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    changed = {k: v for k, v in vars(options).items() if v != parser.get_default(k)}
    os.environ["KVLAB_NOTEBOOK"] = "benchmarks/decoding.py"
    os.environ["KVLAB_PARAMETERS"] = json.dumps(changed)
    runs = pd.concat([measure(shape, options) for shape in options.shapes], ignore_index=True)
    runs = runs.rename(columns={"total_ms": "tpot_ms"})
    columns = ["tpot_ms", "bookkeeping_%", "limit_%"]
    table = with_ratios(summarise(runs, ["shape", "context", "method"], columns))
    caption = (
        f"One step of decoding, batch 1, float32, by context (random keys, no prefill): speed-up "
        f"over DynamicCache, TPOT against that at token 1,000, time in the cache against a step of "
        f"DynamicCache with {options.cache} tokens, share of the limit (memory read at the "
        f"machine's rate). Medians and quartiles over n interleaved repeats, ratios of medians. "
        f"{machine_line()}."
    )
    save_table(table, "decoding", caption)
    save_table(brief(table), "decoding_brief", caption.replace("Medians and quartiles", "Medians"))
    print(brief(table).to_string(index=False))


if __name__ == "__main__":
    main()
