"""What a run took besides its time: seconds inside the attention, and memory at its peak."""

import ctypes
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.cache.attention import NAME
from lib.require import require

_PROCESS = Path("/proc/self")
_peaks = {"cpu": 0.0, "gpu": 0.0}  # MiB, those that were forgotten since


class AttentionWatch:
    """Seconds of every call of an attention function, in order. A GPU is asked, not waited for."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spans = []

    def run(self, function: Callable, *args, **kwargs):
        """Call an attention function and note how long it takes."""
        began = self._mark()
        result = function(*args, **kwargs)
        self._spans.append((began, self._mark()))
        return result

    def _mark(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> list[float]:
        """One number for each call so far."""
        if not self._cuda:
            return [end - began for began, end in self._spans]
        torch.cuda.synchronize()
        return [began.elapsed_time(end) / 1000 for began, end in self._spans]


@contextmanager
def watched_attention(model) -> Iterator[AttentionWatch]:
    """Time each call of the model's attention function, or of ours in its place, in the block."""
    own = model.config._attn_implementation
    allowed = "one of transformers' attention functions, such as 'sdpa'"
    require(own in ALL_ATTENTION_FUNCTIONS, "attn_implementation", own, allowed)
    watch = AttentionWatch(model.device)
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in (own, NAME)}
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = partial(watch.run, function)
    try:
        yield watch
    finally:
        for name, function in before.items():
            del ALL_ATTENTION_FUNCTIONS[name]  # the registered one shows again
            if ALL_ATTENTION_FUNCTIONS[name] is not function:
                ALL_ATTENTION_FUNCTIONS[name] = function


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


def now(device: torch.device) -> float:
    """Seconds, after the accelerator has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Adds up the seconds spent in named parts, an accelerator's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = Counter()

    def run(self, part: str, function: Callable, *args, **kwargs):
        """Call `function` on `part`'s time."""
        began = now(self.device)
        result = function(*args, **kwargs)
        self.seconds[part] += now(self.device) - began
        return result
