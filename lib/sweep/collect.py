"""All rows of a sweep in one table: `python -m lib.sweep.collect params/sweep.yaml`."""

import argparse
import sys
from pathlib import Path

import pandas as pd
import yaml

from lib.paths import atomic_path
from lib.results.manifest import add_to_manifest

from .execute import OK
from .grid import Run, read_runs, sweep_dir


def collect(file: Path) -> pd.DataFrame:
    """Write `sweep/NAME.csv` and `.parquet`, NAME the file's, and return the table.

    A row is a row of a run's table, or a run that failed, with its reason in `status`. What made
    each run's rows is entered in the manifest beside them. ValueError unless every run is there, of
    the code as it is now.
    """
    runs = read_runs(file)
    _require_all(runs)
    parts = []
    for run in runs:
        part = pd.read_csv(run.rows, dtype=str, keep_default_na=False)  # digits stay as they are
        made_by = set(part.version)
        if made_by != {run.version}:
            raise ValueError(
                f"{run.rows.name} was made by version {', '.join(sorted(made_by))} of what it "
                f"depends on, not by {run.version}: delete it and run `make sweep`"
            )
        parts.append(part)
    table = pd.concat(parts, ignore_index=True).fillna("")
    target = sweep_dir() / f"{file.stem}.csv"
    with atomic_path(target) as path:
        table.to_csv(path, index=False, lineterminator="\n")
    typed = pd.read_csv(target)
    with atomic_path(target.with_suffix(".parquet")) as path:
        typed.to_parquet(path, index=False)
    made = {f"runs/{run.rows.name}": run.made_by() for run in runs}
    whole = {"caption": summary(typed), "notebook": "lib.sweep.collect", "rows_of": list(made)}
    entries = {file: entry for file, entry in made.items() if entry} | {target.name: whole}
    add_to_manifest(target.parent, entries)
    return typed


def _require_all(runs: list[Run]) -> None:
    missing = [run for run in runs if not run.rows.is_file()]
    if not missing:
        return
    message = f"{len(missing)} of {len(runs)} runs are not there"
    stale = [run for run in missing if _others(run)]
    if stale:
        example = _others(stale[0])[0].name
        message += (
            f"; of {len(stale)} there are rows of another version of lib, notebook, packages or "
            f"model ({example} for {stale[0].rows.name}): versions are not mixed in one table"
        )
    raise ValueError(f"{message}. `make sweep` runs what is missing")


def _others(run: Run) -> list[Path]:
    """The same question answered by other code."""
    return sorted(run.rows.parent.glob(f"{run.notebook.stem}-{run.key}-*.csv"))


def summary(table: pd.DataFrame) -> str:
    """How many runs ended how: `8 runs: 6 ok, 1 oom, 1 timeout`."""
    status = table.drop_duplicates("run").status
    kinds = status.where(~status.str.startswith("error"), "error").value_counts()
    told = [f"{count} {kind}" for kind, count in kinds.sort_index(key=lambda x: x != OK).items()]
    return f"{len(status)} runs: {', '.join(told)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.sweep.collect")
    parser.add_argument("file", type=Path, help="a sweep's")
    try:
        print(summary(collect(parser.parse_args().file)))
    except (ValueError, OSError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
