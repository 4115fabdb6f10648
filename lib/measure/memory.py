"""Memory at its peak: of a block of code, and of the process so far."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_peaks = {"cpu": 0.0, "gpu": 0.0}  # MiB, those that were forgotten since


class PeakMemory:
    """How far memory grew within the block: `mib` afterwards.

    On a GPU by torch's own count. On Linux by the process's resident memory, freed memory given
    back first, which is good to about a MiB; elsewhere nan.
    """

    def __init__(self, device: torch.device):
        self.device, self.mib = device, math.nan

    def __enter__(self):
        process_peaks()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif (_PROCESS / "clear_refs").exists():
            ctypes.CDLL(None).malloc_trim(0)
            (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *error):
        if self.device.type == "cuda":
            self.mib = (torch.cuda.max_memory_allocated(self.device) - self._before) / 2**20
        elif (_PROCESS / "clear_refs").exists():
            self.mib = (_resident("VmHWM") - self._before) / 2**10


def process_peaks() -> dict[str, float]:
    """MiB at the peak of the process so far: `cpu`, resident, and `gpu`, as torch counts them.

    nan where it isn't known, and 0 for a GPU that isn't used.
    """
    known = (_PROCESS / "status").exists()
    _peaks["cpu"] = max(_peaks["cpu"], _resident("VmHWM") / 2**10) if known else math.nan
    if torch.cuda.is_initialized():
        _peaks["gpu"] = max(_peaks["gpu"], torch.cuda.max_memory_allocated() / 2**20)
    return dict(_peaks)


@contextmanager
def uncounted_memory() -> Iterator[None]:
    """What the block takes for a moment is no part of `process_peaks`."""
    process_peaks()
    yield
    if (_PROCESS / "clear_refs").exists():
        (_PROCESS / "clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _resident(field: str) -> int:
    """KiB of `field` in the process's status."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
