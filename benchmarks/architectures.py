"""Which of transformers' decoders the library is exact for, and why the others are refused.

    python benchmarks/architectures.py

Each architecture is built with tiny random weights, in a process of its own, and run against a slow
loop (tests/decoders.py). Writes docs/architectures.md; exits with 1 if anything is wrong.
"""

import argparse
import multiprocessing
import resource
import sys
import warnings
from collections import defaultdict

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lib.paths import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from decoders import sweep, tiny, tiny_config

MEMORY, SECONDS = 8 << 30, 300  # at most, for one architecture
HEAD = """# Architectures

Written by `python benchmarks/architectures.py`, with transformers {version}. Each decoder is built
with tiny random weights and run against a slow loop that keeps keys un-rotated and feeds one token
after the other: sinks + window with in-cache and original positions, the window alone, a method
that looks at key norms (`fix_size_l2`) and one that looks at attention (`tova`), each in chunks of
1 and 7, and 60 tokens of `generate()` with a budget of 12. "Exact" is within 1e-5 of the largest
number, in float64. A config has its defaults but for sizes, and one layer of each kind: what a type
can do besides (another RoPE scaling) is not in its row, but refused or turned by the same rules.

{exact} architectures are exact throughout, {partly} for some methods, {refused} are refused.

| architecture | outcome |
|---|---|
"""


def outcome(model_type: str, results) -> None:
    """Put the outcomes of one architecture into the queue `results`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    try:
        model = tiny(tiny_config(model_type))
    except Exception as error:  # its sizes are not to be had, or other packages are missing
        results.put({"": f"not built: {type(error).__name__}"})
    else:
        results.put(sweep(model))


def run(model_type: str) -> dict[str, str]:
    """The outcomes of one architecture by check, from a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=outcome, args=(model_type, results), daemon=True)
    process.start()
    process.join(SECONDS)
    process.kill()
    return {"": "CRASHED: no result"} if results.empty() else results.get()


def cell(outcomes: dict[str, str]) -> str:
    """The outcomes in words: what they have in common, then what is otherwise."""
    checks = defaultdict(list)
    for check, one in outcomes.items():
        checks[one].append(check.split(", chunks")[0])
    if len(checks) == 1:
        return next(iter(checks))
    exact = list(dict.fromkeys(x for x in checks.pop("exact", []) if x != "dense"))
    parts = [f"exact: {'; '.join(exact)}"] if exact else []
    for one, names in checks.items():
        parts.append(f"{'; '.join(dict.fromkeys(names))} {one}")
    return ". ".join(parts).replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; without, all of them, and the table")
    options = parser.parse_args()
    cells = {}
    for model_type in options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        cells[model_type] = cell(run(model_type))
        print(f"{model_type}: {cells[model_type]}", flush=True)
    if not options.types:
        write(cells)
    return int(any("WRONG" in x or "CRASHED" in x for x in cells.values()))


def write(cells: dict[str, str]) -> None:
    """The table, by how much works."""
    built = {name: x for name, x in cells.items() if not x.startswith("not built")}
    exact = [name for name, x in built.items() if x == "exact"]
    partly = [name for name, x in built.items() if x.startswith("exact:")]
    rest = [name for name in built if name not in exact and name not in partly]
    counts = {"exact": len(exact), "partly": len(partly), "refused": len(rest)}
    lines = [f"| {name} | {built[name]} |" for name in (*exact, *partly, *rest)]
    text = HEAD.format(version=transformers.__version__, **counts) + "\n".join(lines) + "\n"
    left = ", ".join(f"{name}" for name in cells if name not in built)
    path = ROOT / "docs" / "architectures.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{text}\nNot built at this size, or without other packages: {left}.\n")


if __name__ == "__main__":
    sys.exit(main())
