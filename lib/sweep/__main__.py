"""Run a sweep: `python -m lib.sweep [params/sweep.yaml] [--cores 2] [--profile workflow/slurm]`.

Snakemake runs what is missing, and the rows are collected in one table. The same command goes on
where an earlier one was stopped, by whatever.
"""

import argparse
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import yaml

from lib.paths import PARAMS, ROOT, results_dir
from lib.require import require

from .collect import collect, summary
from .execute import LAST_ATTEMPT, OK
from .grid import Run, read_runs, sweep_dir
from .limits import devices


@contextmanager
def _alone() -> Iterator[int]:
    """One sweep at a time in a folder: a second one waits, for Snakemake, too.

    The lock, a file's number, goes with the processes that have it.
    """
    sweep_dir().mkdir(parents=True, exist_ok=True)
    with (sweep_dir() / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another sweep runs in {sweep_dir()}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _forget_failures(runs: list[Run], every: bool) -> None:
    """Drop rows of failed runs that had other limits, or of all, so that they are run again."""
    for run in runs:
        if run.rows.is_file():
            row = pd.read_csv(run.rows).iloc[0]
            other = (row.minutes, row.memory_gb) != (run.minutes, run.memory_gb)
            if row.status != OK and (every or other):
                run.rows.unlink()


def snakemake(file: Path, cores: int, profile: Path | None, lock: int) -> int:
    """Run what is missing; Snakemake's exit status. It holds the `lock`, too."""
    where = ["--executor", "local"] if profile is None else ["--profile", profile.resolve()]
    command = [
        *(sys.executable, "-m", "snakemake", "runs"),
        *("--snakefile", ROOT / "workflow" / "Snakefile", "--directory", sweep_dir()),
        *("--config", f"file={file.resolve()}", f"scheduled={int(profile is not None)}"),
        *("--retries", LAST_ATTEMPT - 1),
        # what is there is good: its name tells its version, and it was written in one step
        *("--rerun-triggers", "input", "--ignore-incomplete", "--nolock", "--keep-going"),
        *("--quiet", "progress", "rules", "host", *where),
    ]
    if profile is None:
        memory = psutil.virtual_memory().total // 2**20
        command += ["--cores", cores, "--resources", f"gpu={len(devices())}", f"mem_mb={memory}"]
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {"PYTHONPATH": os.pathsep.join(paths), "KVLAB_RESULTS": str(results_dir())}
    where = {"env": os.environ | environment, "pass_fds": [lock]}
    return subprocess.run(list(map(str, command)), **where).returncode


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=PARAMS / "sweep.yaml")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of this machine")
    parser.add_argument("--profile", type=Path, help="Snakemake's, of a cluster")
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    arguments = parser.parse_args()
    try:
        require(arguments.cores > 0, "cores", arguments.cores, "at least 1")
        with _alone() as lock:
            _forget_failures(read_runs(arguments.file), every=arguments.retry)
            code = snakemake(arguments.file, arguments.cores, arguments.profile, lock)
            table = collect(arguments.file)
    except (ValueError, OSError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{summary(table)}\n{sweep_dir() / arguments.file.stem}.csv and .parquet")
    sys.exit(code)


if __name__ == "__main__":
    main()
