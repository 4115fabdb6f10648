"""The adapter beside the real package, where it is installed: `.ci/run` installs it."""

from types import SimpleNamespace

import pytest
import torch
from test_methods import held, kept

from lib.compressors.base import gather_tokens
from lib.compressors.kvpress import PRESSES, KVPress, load_press
from lib.measure.rows import at_budget

pytest.importorskip("kvpress", reason="kvpress is an extra")


@pytest.mark.parametrize("press", PRESSES)
@pytest.mark.parametrize(("length", "budget"), [(40, 39), (64, 20), (200, 90), (600, 256)])
def test_keeps_what_the_press_itself_keeps(press, length, budget):
    cache = held(2, 3, length, 8, seed=length)
    own = load_press(press)
    own.compression_ratio = 1 - (budget + 0.5) / length
    module = SimpleNamespace(layer_idx=0, head_dim=8)
    theirs = own.compress(module, None, cache.keys, cache.values, None, {})
    index = torch.tensor(kept(KVPress(press, budget), cache))
    ours = [gather_tokens(x, index) for x in (cache.keys, cache.values)]
    scores = own.score(module, None, cache.keys, cache.values, None, {})
    ranked = scores.sort(dim=-1, descending=True).values
    assert torch.equal(gather_tokens(scores, index).sort(-1, True).values, ranked[..., :budget])
    tied = ranked[..., budget - 1] == ranked[..., budget]  # which of them is open to topk
    assert press == "LagKVPress" or not tied.any()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape == (2, 3, budget, 8)
        for row, other_row in zip(mine[~tied].tolist(), other[~tied].tolist(), strict=True):
            assert sorted(row) == sorted(other_row)  # kvpress leaves them in topk's order


@pytest.mark.parametrize("press", PRESSES)
def test_a_press_has_a_row(press):
    method = at_budget(f"kvpress_{press}", 20)
    assert type(method.press).__name__ == press
    assert len(kept(method, held(1, 2, 50, 8))[0][0]) == 20
