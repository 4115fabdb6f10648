"""The loss of texts of two lengths, known at some tokens, or in a stream; the literature."""

import math

import numpy as np
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import StreamingLLM, evaluate
from lib.experiments.ppl_vs_length import (
    LITERATURE,
    along_stream,
    by_span,
    edges_of,
    literature_table,
    on_top_of,
    read_far,
    rolling_nll,
)
from lib.measure.stats import mean_ci


@pytest.mark.parametrize("mean", [2.0, 12.0])
def test_on_top_of(mean):
    base = torch.zeros(2, 16) + torch.tensor([[mean - 1], [mean + 1]])
    targets = torch.tensor([1, 2, 3, 9, 10, 11, 12])  # three before position 4, four from there on
    sample = base[:, targets - 1] + torch.tensor([[0.5], [1.5]])
    (row,) = on_top_of(sample, base, targets, np.array([0, 4, 16])).to_dict("records")
    assert (row["begin"], row["end"], row["n_texts"]) == (4, 16, 2)
    assert row["position"] == pytest.approx(8)
    assert row["ppl"] == pytest.approx(math.exp(mean + 1))
    assert math.isnan(row["ppl_low"])  # the spread of the ratio is not that of the perplexity
    assert math.isnan(row["ppl_high"])
    half = 12.706 * 0.5  # Student's t for one degree of freedom, times a standard error of 0.5
    assert row["ratio"] == pytest.approx(math.e)
    assert math.log(row["ratio_low"]) == pytest.approx(1 - half, rel=1e-3)
    assert math.log(row["ratio_high"]) == pytest.approx(1 + half, rel=1e-3)


def test_a_perplexity_on_top_of_another_is_at_least_1():
    base, targets = torch.full((2, 8), 0.1), torch.tensor([2, 3, 4, 5])
    table = on_top_of(base[:, targets - 1] - 3, base, targets, np.array([0, 8]))
    assert table.ppl.tolist() == [1]
    assert table.ratio.tolist() == pytest.approx([math.exp(-3)])


@pytest.mark.parametrize("long_texts", [1, 2, 3, 7])
def test_some_texts_are_read_further(long_texts):
    model, texts, method = cached_model("llama_gqa"), tiny_ids(3, 40), StreamingLLM(2, 6)
    near, far = read_far(model, texts, long_texts, 25, method, chunk_size=8)
    alone = [evaluate(model, text, method, 8).nll for text in texts]
    assert near.shape == (3, 24)
    assert far.shape == (min(long_texts, 3), 39)
    for text, nll in enumerate(alone):
        torch.testing.assert_close(near[text], nll[:24], atol=1e-5, rtol=0)
        if text < long_texts:
            torch.testing.assert_close(far[text], nll, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "far"), [(64, 64), (64, 200), (300, 301)])
def test_spans_cover_both_lengths_without_a_gap(length, far):
    near, beyond = edges_of(length, far, first=8)
    assert (near[0], near[-1]) == (8, length - 1)
    assert list(near) == sorted(set(near))
    if far == length:
        assert len(beyond) == 0
    else:
        assert (beyond[0], beyond[-1]) == (length - 1, far - 1)


def test_by_span_is_paired_and_counts_its_texts():
    random = torch.Generator().manual_seed(0)
    near, far = torch.rand(7, 20, generator=random), torch.rand(2, 50, generator=random)
    other = near + 0.1 * torch.rand(7, 20, generator=random), far - 1
    edges = np.array([4, 10, 20]), np.array([20, 50])
    table = by_span((near, far), other, edges)
    assert table.n_texts.tolist() == [7, 7, 2]
    for row, nll, than in zip(
        table.to_dict("records"), (near, near, far), (other[0], other[0], other[1]), strict=True
    ):
        begin, end = row["begin"], row["end"]
        assert row["position"] == pytest.approx(math.sqrt(begin * end))
        means, gaps = [], []
        for mine, theirs in zip(nll, than, strict=True):
            means.append(sum(mine[begin:end].tolist()) / (end - begin))
            gaps.append(means[-1] - sum(theirs[begin:end].tolist()) / (end - begin))
        for name, values in (("ppl", means), ("ratio", gaps)):
            found = row[name], row[f"{name}_low"], row[f"{name}_high"]
            expected = [math.exp(x) for x in mean_ci(values)]
            if name == "ppl":
                expected = [max(1, x) for x in expected]
            assert found == pytest.approx(expected, rel=1e-5)
    assert table.ratio.iloc[-1] == pytest.approx(math.e)


def test_along_stream_pairs_each_part():
    random = torch.Generator().manual_seed(1)
    base = torch.rand(1600, generator=random)
    nll = base + 0.5 + 0.1 * torch.rand(1600, generator=random)
    table = along_stream(nll, base, parts=4)
    assert table.position.tolist() == [200, 600, 1000, 1400]
    assert set(table.n_stretches) == {16}
    for row, mine, other in zip(
        table.to_dict("records"), nll.split(400), base.split(400), strict=True
    ):
        means = [part.mean().item() for part in mine.split(25)]
        gaps = [(a - b).mean().item() for a, b in zip(mine.split(25), other.split(25), strict=True)]
        for name, values in (("ppl", means), ("ratio", gaps)):
            found = row[name], row[f"{name}_low"], row[f"{name}_high"]
            assert found == pytest.approx([math.exp(x) for x in mean_ci(values)], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "ours", "verdict"),
    [
        ("window", (2.0, 1.01, 3.0), "holds"),
        ("window", (2.0, 0.99, 3.0), "not told apart"),
        ("window", (0.8, 0.7, 0.99), "does not hold"),
        ("recompute", (1.01, 0.96, 1.04), "holds"),
        ("recompute", (1.01, 0.94, 1.04), "not told apart"),
        ("recompute", (1.04, 1.01, 1.06), "not told apart"),
        ("recompute", (1.2, 1.06, 1.3), "does not hold"),
        ("recompute", (0.8, 0.7, 0.94), "does not hold"),
    ],
)
def test_a_pattern_of_the_literature_is_judged_by_the_interval(name, ours, verdict):
    table = literature_table({name: ours})
    assert len(table) == len(LITERATURE)
    for row, found in zip(table.to_dict("records"), LITERATURE, strict=True):
        assert row["ratio_theirs"] == pytest.approx(found.ppl / found.than)
        measured = found.name == name
        assert row["verdict"] == (verdict if measured else "not measured")
        if measured:
            assert (row["ours"], row["ours_low"], row["ours_high"]) == ours
        else:
            assert math.isnan(row["ours"])


def test_the_literature_is_that_of_the_paper():
    found = {row.name: (row.ppl, row.than) for row in LITERATURE}
    assert found == {
        "0 sinks": (21.62, 12.09),
        "1 sinks": (11.95, 12.09),
        "2 sinks": (12.09, 12.09),
        "8 sinks": (12.02, 12.09),
        "window": (5158, 5.40),
        "dense": (5641, 5.40),
        "recompute": (5.43, 5.40),
    }


@pytest.mark.parametrize(
    ("tokens", "width", "points"), [(1, 1, 5), (7, 7, 3), (20, 3, 64), (90, 16, 10)]
)
def test_rolling_nll_is_the_mean_of_the_last_tokens(tokens, width, points):
    nll = torch.rand(4, tokens, generator=torch.Generator().manual_seed(tokens))
    table = rolling_nll(nll, width, points)
    positions = table.position.tolist()
    assert positions == sorted(set(positions))
    assert len(positions) == min(points, tokens - width + 1)
    assert {positions[0], positions[-1]} <= {width, tokens}
    for row in table.to_dict("records"):
        end = int(row["position"])
        means = [sum(text[end - width : end].tolist()) / width for text in nll]
        found = row["nll"], row["nll_low"], row["nll_high"]
        assert found == pytest.approx(mean_ci(means), abs=1e-6)


@pytest.mark.parametrize("width", [0, 9])
def test_a_rolling_width_that_does_not_fit_is_refused(width):
    with pytest.raises(ValueError, match=r"width=.*1\.\.8"):
        rolling_nll(torch.zeros(2, 8), width, 4)
