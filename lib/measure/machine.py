"""What a machine can do: bytes read and numbers multiplied in a second, and its clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """What was measured of one device, with torch's number of threads at that time."""

    bandwidth: float  # bytes read from memory per second
    gemm: float  # FLOP/s of a large matrix product


def now(device: torch.device) -> float:
    """Seconds, after the accelerator has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def measure_machine(device="cpu", dtype: torch.dtype = torch.float32, seconds=1.0) -> Machine:
    """Read and multiply on `device`, each for half of `seconds`; the best run counts.

    The best, because whatever else runs on the machine can only slow a run down.
    """
    device = torch.device(device)
    cpu = device.type == "cpu"
    # far larger than a processor's caches; a sum is the fastest read torch has: on a CPU, unlike a
    # product of a matrix and a vector, it uses all threads
    buffer = torch.ones(2**27 if cpu else 2**29, device=device)  # float32: 0.5 or 2 GiB
    bandwidth = buffer.nbytes / _best_time(buffer.sum, device, seconds / 2)
    del buffer
    size, small = (2048, 256) if cpu else (8192, 1024)
    gemm = _gemm_rate(small, device, dtype, 0)
    if 2 * size**3 / gemm < 1:  # else it can't multiply this type, and would take minutes
        gemm = max(gemm, _gemm_rate(size, device, dtype, seconds / 2))
    return Machine(bandwidth, gemm)


def _gemm_rate(size: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best_time(lambda: a @ b, device, seconds)


def _best_time(function: Callable, device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call: of three at least, of more while `seconds` last."""
    times = []
    function()  # warm up
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = now(device)
        function()
        times.append(now(device) - began)
    return min(times)
