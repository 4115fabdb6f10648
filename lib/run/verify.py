"""Run what made committed results again and compare: `python -m lib.run.verify [NB ...]`.

Each notebook runs with the parameters of the folder's manifest, into a temporary folder, and its
tables are held against the committed ones. Compared are the columns that no clock and no counter of
memory fills; a notebook that has no others is not run. Other than the same is:

- on the machine of the committed run, with its number of threads: any difference at all;
- on another one: a number that differs by more than 1e-3 of itself (of 0.01, if it is less), and
  any other text.
"""

import argparse
import csv
import logging
import re
import sys
import tempfile
from pathlib import Path

from lib.paths import ROOT
from lib.results.code import hash_of
from lib.results.manifest import Entries, read_manifest

from .__main__ import NotebookError, choose, run
from .params import defaults_of, read_contract
from .staging import environment

TOLERANCE = 1e-3  # relative
# columns that a clock or a counter of memory fills, their intervals too
_MEASURED = re.compile(
    r"(.*_)?(ms|s|mib|throughput|speedup|seconds|tokens_per_s|ms_per_token)(_.*)?"
    r"|(limit|gemm_share|bookkeeping)_%.*"
)
_CHOSEN = "rule"  # a table with this column has rows that were chosen by speed, among others
Rows = list[dict[str, str]]


def read_rows(table: Path) -> Rows:
    """The rows of a CSV, less the columns that are measured; none if what its rows are is."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and _CHOSEN in rows[0]:
        return []
    return [{c: cell for c, cell in row.items() if not _MEASURED.fullmatch(c)} for row in rows]


def has_quality(rows: Rows) -> bool:
    """Whether there are numbers that aren't whole: the others count, or say what a row is of."""
    cells = [cell for row in rows for cell in row.values()]
    return any(not number.is_integer() for number in map(_number, cells) if number is not None)


def differences(committed: Rows, again: Rows, tolerance: float) -> list[str]:
    """What differs, a line each: `row 3, ppl: 15.7 committed, 15.8 now`."""
    if len(committed) != len(again):
        return [f"{len(committed)} rows committed, {len(again)} now"]
    found = []
    for place, (before, now) in enumerate(zip(committed, again, strict=True), start=1):
        for column in dict.fromkeys([*before, *now]):
            pair = before.get(column), now.get(column)
            if not _same(*pair, tolerance):
                found.append(f"row {place}, {column}: {pair[0]} committed, {pair[1]} now")
    return found


def _same(before: str | None, now: str | None, tolerance: float) -> bool:
    if before == now or None in (before, now):
        return before == now
    numbers = _number(before), _number(now)
    if None in numbers:
        return False
    return abs(numbers[0] - numbers[1]) <= tolerance * max(0.01, *map(abs, numbers))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def tables_of(notebook: Path, entries: Entries) -> list[str]:
    """The tables of a headless run of a notebook, by their manifest."""
    return [
        file
        for file, entry in entries.items()
        if entry["notebook"] == notebook.stem
        and entry["parameters"] is not None
        and file.endswith(".csv")
    ]


def verify(notebook: Path, results: Path) -> list[str] | None:
    """All that differs between a notebook's committed tables and those of a run now, a line each.

    None if there is nothing to compare. NotebookError if the notebook fails.
    """
    entries = read_manifest(results)
    committed = {file: read_rows(results / file) for file in tables_of(notebook, entries)}
    if not any(map(has_quality, committed.values())):
        return None
    made = entries[next(iter(committed))]
    if defaults_changed(notebook, made):
        return ["its defaults have changed since these results were made: run it again"]
    threads = {"OMP_NUM_THREADS": str(made["threads"])} if "threads" in made else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        environment(KVLAB_RESULTS=folder, **threads),
    ):
        run(notebook, made["parameters"])
        now = read_manifest(Path(folder))
        found = []
        for file in committed:
            if file not in now:
                found.append(f"{file}: no longer saved")
                continue
            tolerance = 0 if _same_machine(entries[file], now[file]) else TOLERANCE
            again = read_rows(Path(folder) / file)
            lines = differences(committed[file], again, tolerance)
            found += [f"{file}: {line}" for line in lines]
        new = sorted(set(tables_of(notebook, now)) - set(committed))
    return found + [f"{file}: not among the committed ones" for file in new]


def defaults_changed(notebook: Path, made: dict) -> bool:
    """Whether the parameters of a result, defaults included, would be others today."""
    now = defaults_of(read_contract(notebook)) | (made["parameters"] or {})
    return made.get("parameters_sha256") not in (None, hash_of(now))


def _same_machine(before: dict, now: dict) -> bool:
    """By all that is noted: other sums come of other instructions, whatever a machine is called."""
    facts = ("machine", "instructions", "threads")
    return all(name in before and before[name] == now[name] for name in facts)


def main() -> None:
    """The command line: exit status 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m lib.run.verify", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebooks", nargs="*", metavar="NB", help="number, name or path")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: results")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    failed, compared = False, 0
    results = arguments.results.resolve()
    try:
        for notebook in choose(arguments.notebooks):
            print(f"{notebook.stem} ... ", end="", flush=True)
            try:
                found = verify(notebook, results)
            except NotebookError as error:  # the others are to be compared
                failed = True
                print(f"failed\n{error}", flush=True)
                continue
            failed |= bool(found)
            compared += found is not None
            told = "the same" if found == [] else "nothing to compare"
            print("\n  ".join(["DIFFERS", *found]) if found else told, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if not (compared or failed):
        sys.exit(f"error: nothing was compared: {results} has no numbers of these notebooks")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
