"""Limits of a run, held by killing its kernel, and which GPU it gets."""

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

TIMEOUT, OOM = "timeout", "oom"
WATCHER_MB = 1000  # what a run needs beside its kernel: papermill and Snakemake's own process
EVERY = 0.1  # seconds between two looks at the memory
GROUPS, CGROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
GPU_FILES = Path("/dev")


class Limits:
    """Kills the processes that this one has started when they take too much, in the block.

    `reason` is then `"oom"` (resident memory of all of them above `memory_gb`) or `"timeout"`, else
    None. `killer_struck` tells whether the system has killed for memory in this process's control
    group meanwhile, whomever: others may run in it. `minutes=None` leaves the time to a scheduler.
    """

    def __init__(self, memory_gb: float, minutes: float | None):
        self.memory, self.minutes = memory_gb * 1e9, minutes
        self.reason: str | None = None
        self.killer_struck = False
        self.peak = 0  # bytes, the most that was seen

    def __enter__(self):
        self._over, self._began = threading.Event(), time.monotonic()
        self._killed_before = _killed_for_memory()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self.killer_struck = _killed_for_memory() > self._killed_before

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            started = psutil.Process().children(recursive=True)
            self.peak = max(self.peak, sum(map(_resident, started)))
            late = self.minutes and time.monotonic() - self._began > 60 * self.minutes
            if self.peak > self.memory or late:
                self.reason = OOM if self.peak > self.memory else TIMEOUT
                for process in started:
                    if process.is_running():
                        process.kill()
                return


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended between two lines
        return 0


def _killed_for_memory() -> int:
    """How often the kernel has killed for memory in this process's control group (Linux)."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else []:
        _, kind, group = line.split(":", 2)
        # both versions of control groups
        place, name = {"": (".", "memory.events"), "memory": ("memory", "memory.oom_control")}.get(
            kind, ("", "")
        )
        events = CGROUP_FILES / place / group.lstrip("/") / name
        if name and events.is_file():
            counts = dict(row.split() for row in events.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0


@contextmanager
def one_gpu() -> Iterator[None]:
    """A GPU of this machine that no other run holds, from now on this process's only one.

    Out of those in `CUDA_VISIBLE_DEVICES`, or of all. It is held in the block by a lock on a file,
    which goes with the process. RuntimeError if all are taken: Snakemake counts them.
    """
    for device in devices():
        path = Path(tempfile.gettempdir()) / f"kv-lab-{os.getuid()}-gpu-{device}.lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            yield
            return
    raise RuntimeError(f"no GPU is free out of {', '.join(devices()) or 'none'}")


def devices() -> list[str]:
    """The GPUs that may be used, by what `CUDA_VISIBLE_DEVICES` calls them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    # CUDA counts those it finds from 0, whatever their files are called
    return [str(number) for number in range(len(list(GPU_FILES.glob("nvidia[0-9]*"))))]
