"""Memory at its peak."""

import subprocess
import sys

import pytest

from lib.paths import ROOT

PEAK = """
import torch
from lib.measure.memory import PeakMemory

with PeakMemory(torch.device("cpu")) as peak:
    block = torch.ones(40 * 2**18)  # 40 MiB
    del block
    block = torch.ones(10 * 2**18)
with PeakMemory(torch.device("cpu")) as nothing:
    pass
print(peak.mib, nothing.mib, block.sum().item() == 10 * 2**18)
"""


def test_peak_memory():
    """In a process of its own: after a thousand tests freed memory may stay with this one."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    peak, nothing, whole = done.stdout.split()
    assert float(peak) == pytest.approx(40, abs=4)
    assert 0 <= float(nothing) < 2
    assert whole == "True"
