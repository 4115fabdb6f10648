"""The pace of exact evaluation by method, beside sinks + window in the same chunks.

    python benchmarks/evaluation.py

Methods that look at keys or attention cut once per chunk; so does the lazy window they are held
against, which does nothing else. Strict sinks + window, cut with every token, stands beside both.
Writes the table `evaluation` under results/.
"""

import argparse
import random
import time

import numpy as np
import pandas as pd

from lib import evaluate, load_model, load_tokens, save_table
from lib.measure.limits import evaluation_flops
from lib.measure.machine import measure_machine
from lib.measure.rows import buffers_of, rows_of
from lib.measure.stats import mean_ci, summarise, with_interval
from lib.progress import progress
from lib.results.provenance import machine_line, run_by_script

# those that look at keys or attention
METHODS = ["fix_l2_low", "h2o_l2", "keydiff", "lagkv", "h2o", "tova", "snapkv"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["reference", "smollm2"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--chunks", nargs="+", type=int, default=[64, 512], help="tokens")
    parser.add_argument("--cache", type=int, default=512, help="budget in tokens")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    return parser


def measure(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """One row per method, chunk and repeat; in each repeat another order, the first warms up."""
    model, tokenizer = load_model(name)
    ids = load_tokens("docs", tokenizer, options.tokens)
    flops = evaluation_flops(model, len(ids), options.cache)
    gemm = measure_machine(model.device, model.dtype).gemm
    kinds = {"include_baseline": False, "include_recent_only": False}
    methods = rows_of(["streaming", "streaming_lazy", *options.methods], [options.cache], **kinds)
    cells, rows = [(chunk, x) for chunk in options.chunks for x in methods], []
    runs = [
        (n, cell)
        for n in range(-1, options.repeats)
        for cell in random.Random(n).sample(cells, len(cells))
    ]
    for repeat, (chunk, method) in progress(runs, desc=name):
        began = time.perf_counter()
        evaluate(model, ids, methods[method], chunk, buffer=buffers_of(methods, chunk)[method])
        pace = len(ids) / (time.perf_counter() - began)
        share = 100 * pace * flops / len(ids) / gemm
        rows.append((name, chunk, method, repeat, pace, share))
    columns = ["model", "chunk_size", "method", "repeat", "tokens_per_s", "gemm_share_%"]
    table = pd.DataFrame(rows, columns=columns)
    return table[table.repeat >= 0]


def against(runs: pd.DataFrame, method: str, name: str) -> pd.DataFrame:
    """Pace over that of `method` in the same repeat: geometric means and their 95% intervals."""
    place = ["model", "chunk_size"]
    base = runs[runs.method == method].set_index([*place, "repeat"]).tokens_per_s
    own = runs.set_index([*place, "method", "repeat"]).tokens_per_s
    ratios = np.log(own / base.reindex(own.index.droplevel("method")).to_numpy())
    rows = {
        which: with_interval(name, np.exp(mean_ci(part)))
        for which, part in ratios.groupby(level=[*place, "method"])
    }
    return pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows))


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    run_by_script("benchmarks/evaluation.py", parser, options)
    runs = pd.concat([measure(name, options) for name in options.models], ignore_index=True)
    place = ["model", "chunk_size", "method"]
    table = summarise(runs.sort_values(place), place, ["tokens_per_s", "gemm_share_%"])
    for kind in ("streaming", "streaming_lazy"):
        ratios = against(runs, f"{kind}_{options.cache}", kind.replace("streaming", "against"))
        table = table.join(ratios, on=place)
    caption = (
        f"Exact evaluation of {options.tokens:,} tokens at a budget of {options.cache}, in chunks "
        "of chunk_size: tokens/s and the share of the rate of matrix products, medians and "
        "quartiles; the pace over that of sinks + window (`against`) and of the lazy one, in the "
        f"same of n repeats, with 95% intervals. {machine_line()}."
    )
    save_table(table, "evaluation", caption)


if __name__ == "__main__":
    main()
