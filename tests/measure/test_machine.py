"""What a machine can do, measured."""

import pytest
import torch

from lib.measure.machine import measure_machine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measure_machine(dtype):
    machine = measure_machine("cpu", dtype, seconds=0)
    assert machine.bandwidth > 0
    assert machine.gemm > 0
