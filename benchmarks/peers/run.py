"""Our decoding and evaluation against other caches: `python benchmarks/peers/run.py`.

In one run, on the same machine, weights and tokens, at batch 1: transformers' own caches, kvpress,
attention_sinks, and our cache fed token by token (`methods.py`). Peers run in environments of their
own, installed on first use as `<peer>.txt` pins them; on Linux, point pip to a CPU build of torch
first if no CUDA build is wanted. Only one process computes at a time. A method that can't be
installed, imported or run is a row that says how it failed.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import inputs
import torch
from environments import versions
from methods import PACKAGES
from table import Cell, brief, brief_caption, caption, table
from workers import start_workers

from lib.paths import results_dir
from lib.progress import progress
from lib.results.provenance import machine_line, run_by_script
from lib.results.save import save_table

# what the short table shows
SHOWN = ["model", "package", "method", "decode_tokens_per_s", "ttft_s", "peak_mib"]
SHOWN += ["evaluate_tokens_per_s", "ppl"]
QUICK = {"context": [64], "new_tokens": 8, "repeats": 1, "eval_repeats": 1, "cache": 32}
QUICK |= {"eval_tokens": 80, "eval_text": 200}
QUICK |= {"layers": 2, "hidden": 64, "heads": 4, "vocabulary": 500}


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line and the options given on it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = partial(parser.add_argument, type=int)
    add("--context", nargs="+", default=[512, 1024], help="prompt lengths, tokens")
    add("--new-tokens", default=32, help="timed steps of decoding")
    add("--settle", default=16, help="untimed steps before them; the lazy row cuts as often")
    add("--repeats", default=3, help="timed runs of decoding, after one to warm up")
    add("--eval-repeats", default=2, help="timed runs of evaluation, after a short one")
    add("--cache", default=256, help="tokens kept, 4 sinks among them")
    add("--eval-tokens", default=288, help="tokens evaluated, random Llama")
    add("--eval-text", default=1024, help="tokens evaluated, reference model")
    add("--layers", default=12, help="of the random Llama, as the following")
    add("--hidden", default=768)
    add("--heads", default=12)
    add("--vocabulary", default=32000)
    add("--threads", default=torch.get_num_threads(), help="torch threads of every worker")
    parser.add_argument("--out", type=Path, default=results_dir(), help="results folder")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, for a trial")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    return parser, parser.parse_args()


def make_cells(model: str, decode: list[int], evaluate: int) -> list[Cell]:
    """Every method of every package at every length."""
    tasks = [("decode", length) for length in decode] + [("evaluate", evaluate)]
    return [
        Cell(model, task, length, package, method, versions(package.environment, package.name))
        for task, length in tasks
        for package in PACKAGES
        for method in getattr(package, task)
    ]


def measure(cells: list[Cell], make: Callable[[Path], None], args: argparse.Namespace) -> None:
    """Warm up every cell, noting its memory, then measure in shuffled rounds.

    Rounds are the outer loop, so that drift of the machine hits all methods alike.
    """
    options = {"cache": args.cache, "sinks": 4, "lazy": args.settle, "threads": args.threads}
    runs = [(cell, True) for cell in cells]
    repeats = {"decode": args.repeats, "evaluate": args.eval_repeats}
    for repeat in range(max(repeats.values())):
        again = [cell for cell in cells if repeat < repeats[cell.task]]
        runs += [(cell, False) for cell in random.Random(repeat).sample(again, len(again))]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        workers = start_workers(Path(folder), options)
        try:
            for cell, warm_up in progress(runs, desc=cells[0].model):
                if cell.failure is None:
                    request = cell.request(args.settle + args.new_tokens, warm_up)
                    cell.note(workers[cell.package.worker].ask(request), warm_up)
        finally:
            for worker in workers.values():
                worker.stop()


def main() -> None:
    """Measure all cells of both models and save the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up as after Ctrl-C
    parser, args = parse()
    llama = make_cells("random Llama", args.context, args.eval_tokens)
    size = args.layers, args.hidden, args.heads, args.vocabulary
    tokens = max(*args.context, args.eval_tokens)
    measure(llama, lambda folder: inputs.random_llama(folder, tokens, *size), args)
    trained = make_cells("reference", [max(args.context)], args.eval_text)
    tokens = max(*args.context, args.eval_text)
    measure(trained, lambda folder: inputs.reference(folder, tokens), args)
    os.environ["KVLAB_RESULTS"] = str(args.out)
    run_by_script("benchmarks/peers/run.py", parser, args, "out")
    rows = table(llama + trained, args.new_tokens)
    save_table(rows, "peers", caption(args))
    save_table(brief(rows), "peers_brief", f"{brief_caption(rows)} {machine_line()}.", SHOWN)


if __name__ == "__main__":
    main()
