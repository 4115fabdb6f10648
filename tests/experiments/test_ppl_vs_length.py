"""The loss along a text of a method that is known at some tokens only."""

import math

import numpy as np
import pytest
import torch

from lib.experiments.ppl_vs_length import on_top_of


@pytest.mark.parametrize("mean", [2.0, 12.0])
def test_on_top_of(mean):
    base = torch.zeros(2, 16) + torch.tensor([[mean - 1], [mean + 1]])
    targets = torch.tensor([1, 2, 3, 9, 10, 11, 12])  # three before position 4, four from there on
    sample = base[:, targets - 1] + torch.tensor([[0.5], [1.5]])
    (row,) = on_top_of(sample, base, targets, np.array([0, 4, 16])).to_dict("records")
    assert row["position"] == pytest.approx(8)
    assert row["ppl"] == pytest.approx(math.exp(mean + 1))
    half = 12.706 * 0.5  # Student's t for one degree of freedom, times a standard error of 0.5
    low, high = math.log(row["ppl_low"]), math.log(row["ppl_high"])
    assert low == pytest.approx(max(0, mean + 1 - half), rel=1e-3)
    assert high == pytest.approx(mean + 1 + half, rel=1e-3)
