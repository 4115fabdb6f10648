"""One run of a sweep: `python -m lib.sweep.execute FILE ID --attempt 1`.

What comes of it is a CSV of rows: those of the notebook's table, or one that says why there are
none. So a run that fails is a result, and the sweep goes on. A scheduler that kills the run kills
this process, too; it then leaves a note, and the next attempt makes it a row.
"""

import argparse
import logging
import os
import re
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import papermill
from papermill.iorw import LocalHandler, papermill_io

from lib.paths import atomic_path
from lib.run.staging import staged_run

from .grid import Run, read_runs
from .limits import OOM, TIMEOUT, Limits, one_gpu

OK = "ok"
LAST_ATTEMPT = 3
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|bad_alloc", re.IGNORECASE)


class WholeFiles(LocalHandler):
    """papermill's way to disk, each file in one step: it saves again and again while it runs."""

    def write(self, buf: str, path: str) -> None:
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(buf, encoding="utf-8")


def execute(run: Run, attempt: int, scheduled: bool = False) -> None:
    """Run it, or after an attempt that was killed say why, and write its rows in one step.

    `scheduled`: a scheduler holds the time, and deals out the GPUs.
    """
    note = run.log.with_suffix(".killed")
    status = note.read_text() if attempt > 1 and note.exists() else None
    if attempt == LAST_ATTEMPT and status is None:
        status = f"error: ended {attempt - 1} times without rows: killed, or they can't be written"
    note.unlink(missing_ok=True)
    began = time.monotonic()
    if status is None:
        signal.signal(signal.SIGTERM, lambda *_: _leave_note(note, run, time.monotonic() - began))
        status = _try(run, scheduled)
    if status == OOM and scheduled:  # Slurm may call a job failed in which it has killed
        note.write_text(OOM)
    rows = pd.DataFrame({"status": [status]})
    if status == OK:
        rows = pd.read_csv(run.saved, dtype=str)
        rows.insert(0, "status", OK)
    with atomic_path(run.rows) as path:
        _with_run(rows, run).to_csv(path, index=False, lineterminator="\n")
    print(f"{run.id}: {status}, {time.monotonic() - began:.0f} s", file=sys.stderr)


def _leave_note(note: Path, run: Run, seconds: float) -> None:
    # a scheduler looks at the time twice a minute, and begins to count before this process does
    late = seconds > 60 * run.minutes - 30
    note.write_text(TIMEOUT if late else f"error: ended from outside after {seconds:.0f} s")
    sys.exit(143)


def _try(run: Run, scheduled: bool) -> str:
    """`ok`, or why not: `oom`, `timeout`, or `error: ` and the error's last line."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    papermill_io.register(str(run.log.parent), WholeFiles())
    limits = Limits(run.memory_gb, None if scheduled else run.minutes)
    os.environ["KVLAB_RESULTS"] = str(run.folder)
    if not run.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else every model would take the first
    try:
        with one_gpu() if run.gpus and not scheduled else nullcontext(), limits:
            with staged_run(run.notebook, run.parameters):
                papermill.execute_notebook(
                    run.notebook, run.log, run.parameters, progress_bar=False
                )
            return _table_error(run) or OK
    except Exception as error:
        died = type(error).__name__ == "DeadKernelError"
        return limits.reason or (OOM if died and limits.killer_struck else _reason(error))


def _table_error(run: Run) -> str | None:
    """What is wrong with the table that a run has saved."""
    who = f"error: {run.notebook.stem} saved"
    if not run.saved.exists():
        return f"{who} no table {run.table}"
    table = pd.read_csv(run.saved, dtype=str)
    if "status" in table:
        return f"{who} a column status in {run.table}, which is the sweep's"
    return None if len(table) else f"{who} no row in {run.table}"


def _reason(error: Exception) -> str:
    name, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if name == "OutOfMemoryError" or _NO_MEMORY.search(f"{name}: {said}"):
        return OOM
    return f"error: {name}: {' '.join(str(said).split())}"[:300]


def _with_run(rows: pd.DataFrame, run: Run) -> pd.DataFrame:
    """`rows` behind the columns that name their run, parameters as they were given."""
    models = run.made_by().get("models", [])
    device = " ".join(dict.fromkeys(model["device"] for model in models))
    about = {"run": f"{run.notebook.stem}-{run.key}", "version": run.version}
    about |= {"notebook": run.notebook.stem}
    about |= {} if "device" in rows else {"device": device}
    about |= {"minutes": run.minutes, "memory_gb": run.memory_gb}
    for name, value in run.parameters.items():
        column = f"{name}_given" if name in rows else name
        about[column] = " ".join(map(str, value)) if isinstance(value, list) else value
    return pd.concat([pd.DataFrame(about, index=rows.index), rows], axis=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.sweep.execute")
    parser.add_argument("file", type=Path)
    parser.add_argument("id")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--scheduled", action="store_true", help="a scheduler holds the time")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    runs = {run.id: run for run in read_runs(arguments.file)}
    if arguments.id not in runs:
        sys.exit(f"no run {arguments.id}: what it depends on has changed since the sweep began")
    execute(runs[arguments.id], arguments.attempt, arguments.scheduled)


if __name__ == "__main__":
    main()
