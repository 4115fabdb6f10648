"""The explorer's numbers for a page without a kernel: one text, hundreds of settings.

`python -m lib.report.grid --model smollm2 --out results/smollm2/explorer_grid.json` evaluates sinks
+ window exactly, as notebook 05 does, for every pair of `--sinks` and `--windows`. A run that was
ended goes on where it was: what is in the file is not evaluated again.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch

from lib.compressors import StreamingLLM
from lib.load.models import load_model
from lib.load.texts import load_tokens
from lib.measure.loss_code import loss_code
from lib.measure.perplexity import evaluate
from lib.measure.stats import for_json, log_edges, middle, nll_by_position, ppl_ci, stretches
from lib.paths import atomic_path
from lib.progress import progress
from lib.results.provenance import entry

SINKS = [0, 1, 2, 3, 4, 6, 8, 12, 16]
WINDOWS = [16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 896]
WINDOWS += [1024, 1280, 1536, 1792, 2048]
DENSE = "dense"
CAPTION = "Sinks and window for the report's explorer"


def setting(sinks: int, window: int) -> str:
    """The name of a pair in the grid: `4+124`."""
    return f"{sinks}+{window}"


def measure_setting(
    model, tokens: torch.Tensor, compressor: StreamingLLM | None
) -> dict[str, list[float | None]]:
    """Perplexity of a text (T,) with its interval, and NLL by position with that of each place."""
    nll = evaluate(model, tokens, compressor).nll
    curve = nll_by_position(nll[None], log_edges(16, len(tokens) - 1))
    nats = {name: for_json(curve[name]) for name in ("nll", "nll_low", "nll_high")}
    return {"ppl": for_json(ppl_ci(stretches(nll))), **nats}


def make_grid(
    path: Path, model_name: str, text: str, seq_len: int, sinks: list[int], windows: list[int]
) -> None:
    """Write the grid of all pairs, and dense attention, to `path`; whole after every setting."""
    model, tokenizer = load_model(model_name)
    tokens = load_tokens(text, tokenizer, seq_len)
    edges = log_edges(16, len(tokens) - 1)
    middles = [round(middle(*span)) for span in pairwise(edges.tolist())]
    about = {"model": model_name, "text": text, "tokens": len(tokens), "position": middles}
    now = entry(CAPTION)
    about["made_of"] = [loss_code(), now["models"][-1], now["texts"][-1]]
    grid = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": {}}
    if grid.get("about", about) != about:
        raise ValueError(f"{path} is of another model, text or code: give another --out")
    pairs = [(s, w) for w in sorted(windows) for s in sorted(sinks)]
    wanted = {DENSE: None} | {setting(*pair): StreamingLLM(*pair) for pair in pairs}
    missing = [name for name in wanted if name not in grid["settings"]]
    for name in progress(missing, desc=str(path), unit="setting"):
        grid["settings"][name] = measure_setting(model, tokens, wanted[name])
        made = entry(CAPTION)
        with atomic_path(path) as temporary:
            content = {"about": about, "made": made, "settings": grid["settings"]}
            temporary.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.report.grid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="reference")
    parser.add_argument("--text", default="docs")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--sinks", type=int, nargs="+", default=SINKS)
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        make_grid(given.out, given.model, given.text, given.seq_len, given.sinks, given.windows)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
