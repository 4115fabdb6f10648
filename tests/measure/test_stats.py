"""Intervals and summaries, against their definitions."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from lib.measure.stats import (
    by_position,
    for_json,
    log_edges,
    mean_ci,
    nll_by_position,
    over_medians,
    place_table,
    ppl_ci,
    ppl_ratio_ci,
    ratio_table,
    share_ci,
    size_beside,
    stretches,
    summarise,
    verdict,
)


def test_mean_ci():
    assert mean_ci([3.0]) == pytest.approx((3.0, math.nan, math.nan), nan_ok=True)
    assert mean_ci([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    # few values, t tables: 12.706 for one degree of freedom, 2.776 for four
    assert mean_ci([0.0, 2.0]) == pytest.approx((1.0, 1 - 12.706, 1 + 12.706), rel=1e-4)
    half = 2.776 * math.sqrt(2.5 / 5)
    assert mean_ci([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), rel=1e-3)


def test_a_sample_has_a_ratio_and_no_perplexity():
    nll = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)).double()
    pairs = {"all": (nll + 0.1, nll), "some": (nll[:, ::4] + 0.2, nll[:, ::4])}
    table = ratio_table(pairs, {"some"}).set_index("method")
    assert table.ratio.tolist() == pytest.approx([math.exp(0.1), math.exp(0.2)])
    assert table.ppl["all"] == pytest.approx(math.exp(float(nll.mean()) + 0.1))
    assert table.loc["some", ["ppl", "ppl_low", "ppl_high"]].isna().all()
    assert table.n_tokens.tolist() == [200, 50]


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ((2, 10), (4, 4), "as theirs"),
        ((2, 3), (3, 5), "as theirs"),
        ((5, 9), (2, 4), "larger here"),
        ((1.1, 1.5), (2, 4), "smaller here"),
        ((-3, 1.5), (2, 4), "smaller here"),
        ((-9, -8), (2, 4), "larger here"),
        ((-9, -8), (-4, -2), "larger here"),
    ],
)
def test_an_effects_size_beside_anothers(ours, theirs, words):
    assert size_beside(ours, theirs, 1 if min(ours) > 0 else 0) == words


@pytest.mark.parametrize(("n", "least"), [(4, 0.94), (6, 0.91), (8, 0.925), (16, 0.935)])
def test_intervals_cover_the_mean(n, least):
    samples = np.random.default_rng(0).normal(5, 2, (1500, n))
    covered = [low <= 5 <= high for _, low, high in map(mean_ci, samples)]
    assert least < np.mean(covered) < 0.965


def test_the_bootstrap_is_one():
    """Every resample of six values, listed: the interval's ends are the quantiles of their means.

    Student's 2.571 for five degrees of freedom is 2.816 with its correction: a tail of 0.00243.
    """
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    means = np.array([sum(draw) / 6 for draw in itertools.product(values, repeat=6)])
    mean, low, high = mean_ci(values)
    assert mean == values.mean()
    assert low == pytest.approx(np.quantile(means, 0.00243), rel=0.08)
    assert high == pytest.approx(np.quantile(means, 1 - 0.00243), rel=0.03)
    assert mean_ci(values) == (mean, low, high)  # the same twice
    shifted = mean_ci(10 * values + 3)
    assert shifted == pytest.approx([10 * x + 3 for x in (mean, low, high)])


@pytest.mark.parametrize("n", [1, 2, 6, 12, 31, 100])
def test_an_interval_of_a_share_is_wilsons(n):
    for hits in range(n + 1):
        other = binomtest(hits, n).proportion_ci(method="wilson")
        assert share_ci(hits, n) == pytest.approx((hits / n, other.low, other.high), abs=1e-12)
    assert share_ci(0, n)[:2] == (0, 0)
    assert share_ci(n, n)[::2] == (1, 1)


@pytest.mark.parametrize(("hits", "n"), [(0.5, 1), (1 / 3, 12), (2.5, 6), (11.9, 12)])
def test_the_ends_of_a_share_of_shares_stand_1_96_deviations_off(hits, n):
    """Of a coin whose share is the interval's end."""
    share, *ends = share_ci(hits, n)
    for end in ends:
        deviation = math.sqrt(end * (1 - end) / n)
        assert abs(share - end) == pytest.approx(1.959964 * deviation, rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_shares_are_refused(hits, n):
    with pytest.raises(ValueError, match="hits="):
        share_ci(hits, n)


def test_place_table():
    values = np.arange(12.0).reshape(2, 2, 3) ** 2  # two texts
    table = place_table({"x": values, "y": -values}, ("layer", "head"))
    assert len(table) == 6
    for row in table.itertuples():
        mean, low, high = mean_ci([values[0, row.layer, row.head], values[1, row.layer, row.head]])
        assert (row.x, row.x_low, row.x_high) == (mean, low, high)
        assert (row.y, row.y_low, row.y_high) == pytest.approx((-mean, -high, -low))
        assert row.n_texts == 2


def test_perplexity_intervals():
    nll = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert ppl_ci(nll) == pytest.approx((math.e**2,) * 3)
    base = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert ppl_ratio_ci(nll, base) == pytest.approx((math.e,) * 3)
    far = torch.tensor([[19.0, 19.0], [21.0, 21.0]])
    half = 12.706  # Student's t for one degree of freedom, times a standard error of 1
    expected = (math.exp(20), math.exp(20 - half), math.exp(20 + half))
    assert ppl_ci(far) == pytest.approx(expected, rel=1e-3)


def test_no_perplexity_is_below_one_but_a_ratio_is():
    nll = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    half = 12.706
    assert ppl_ci(nll) == pytest.approx((math.e, 1, math.exp(1 + half)), rel=1e-3)
    expected = (math.exp(-1), math.exp(-1 - half), math.exp(-1 + half))
    assert ppl_ratio_ci(nll, torch.full((2, 2), 2.0)) == pytest.approx(expected, rel=1e-3)
    assert ppl_ci(nll[1:]) == pytest.approx((math.e**2, math.nan, math.nan), nan_ok=True)


def test_by_position():
    nll = torch.cat((torch.zeros(2, 4), torch.full((2, 12), math.log(3))), dim=1)
    nll[1, 4:] = math.log(27)
    table = by_position(nll, np.array([0, 4, 16]))
    assert table.position.tolist() == pytest.approx([2.0, 8.0])
    assert table.ppl.tolist() == pytest.approx([1.0, 9.0])
    half = 12.706 * math.log(3)  # log(9) and the standard error log(3)
    assert table.ppl_low.tolist() == [1, 1]  # 9 / 3 ** 12.706 is no perplexity
    assert np.log(table.ppl_high).tolist() == pytest.approx([0, math.log(9) + half], rel=1e-3)


def test_nll_by_position_is_the_logarithm_for_json_too():
    nll = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    edges = np.array([0, 4, 12])
    table, ppl = nll_by_position(nll, edges), by_position(nll, edges)
    assert list(table.position) == list(ppl.position)
    for end in ("", "_low", "_high"):
        assert np.exp(table[f"nll{end}"]).tolist() == pytest.approx(ppl[f"ppl{end}"].tolist())
    assert for_json(np.array([1.234567, np.nan, -np.inf, 0])) == [1.2346, None, None, 0]


def test_a_ratio_by_position_may_be_below_1():
    generator = torch.Generator().manual_seed(0)
    right, wrong = torch.rand(2, 3, 12, generator=generator)
    wrong[:, 4:] -= 3
    table = by_position(wrong, np.array([1, 4, 12]), right)
    assert table.position.tolist() == pytest.approx([2, math.sqrt(48)])
    for row, part in zip(table.itertuples(), (slice(1, 4), slice(4, 12)), strict=True):
        gaps = (wrong - right)[:, part].mean(1)
        assert row.ratio == pytest.approx(math.exp(gaps.mean()))
        half = 4.3027 * float(gaps.std()) / math.sqrt(3)  # Student's t, two degrees of freedom
        assert row.ratio_low == pytest.approx(math.exp(gaps.mean() - half), rel=1e-4)
        assert row.ratio_high == pytest.approx(math.exp(gaps.mean() + half), rel=1e-4)
    assert table.ratio_high[1] < 1


def test_by_position_of_one_text_has_an_interval_over_its_stretches():
    nll = torch.tensor([0.0, 2.0]).repeat_interleave(32)[None]
    (row,) = by_position(nll, np.array([0, 64])).to_dict("records")
    assert row["ppl"] == pytest.approx(math.e)
    # 16 stretches, half of them 0 and half of them 2: the standard error of the mean is 1/4
    low, high = math.log(row["ppl_low"]), math.log(row["ppl_high"])
    assert (low, high) == pytest.approx((0.5, 1.5), abs=0.13)


@pytest.mark.parametrize("tokens", [32, 47, 48, 100])
def test_stretches_are_in_order_and_of_one_length(tokens):
    parts = stretches(torch.arange(float(tokens)))
    assert parts.shape == (16, tokens // 16)
    assert parts.flatten().tolist() == list(range(tokens // 16 * 16))
    assert stretches(torch.arange(31.0)).tolist() == [list(range(31))]


def test_log_edges():
    assert log_edges(16, 128, per_octave=1).tolist() == [16, 32, 64, 128]
    edges = log_edges(1, 1000, per_octave=4)
    assert (edges[0], edges[-1]) == (1, 1000)
    assert (np.diff(edges) > 0).all()


def test_summarise():
    runs = pd.DataFrame(
        {"method": ["b", "a", "b", "b", "b", "b"], "x": [1.0, 7.0, 5.0, 3.0, 2.0, 4.0]}
    )
    expected = pd.DataFrame(
        {"method": ["b", "a"], "n": [5, 1], "x": [3, 7.0], "x_q1": [2, 7.0], "x_q3": [4, 7.0]}
    )
    pd.testing.assert_frame_equal(summarise(runs, ["method"], ["x"]), expected)


def test_ratios_are_those_of_the_medians_and_their_ends_of_opposite_quartiles():
    rows = [(1, "a", 10, 9, 12), (1, "b", 5, 4, 6), (2, "b", 30, 10, 31), (2, "a", 20, 19, 22)]
    rows += [(3, "b", 1, 1, 1)]  # nothing to hold it against
    table = pd.DataFrame(rows, columns=["n", "of", "x", "x_q1", "x_q3"], index=[3, 5, 1, 0, 9])
    found = over_medians(table, "x", table[table.of == "a"], ["n"])
    assert found.index.tolist() == [3, 5, 1, 0, 9]
    assert found.loc[[3, 0]].to_numpy().tolist() == [[1, 1, 1]] * 2
    assert found.loc[5].tolist() == [0.5, 4 / 12, 6 / 9]  # quartiles apart: below 1
    assert found.loc[1].tolist() == [1.5, 10 / 22, 31 / 19]  # they overlap: 1 is inside
    assert found.loc[9].isna().all()
    both = over_medians(table, "x", table[table.n == 1], ["of"])
    assert both.ratio.tolist() == [1, 1, 6, 2, 0.2]


@pytest.mark.parametrize(
    ("side", "low", "high", "words"),
    [
        (1, 0.1, 9, "holds"),
        (1, -0.1, 9, "not told apart"),
        (1, -9, -0.1, "does not hold"),
        (-1, -9, -0.1, "holds"),
        (-1, 0.1, 9, "does not hold"),
        (-1, -1, 1, "not told apart"),
        (0, -4.9, 4.9, "holds"),
        (0, 4, 6, "not told apart"),
        (0, 5.1, 6, "does not hold"),
        (0, -7, -5.1, "does not hold"),
    ],
)
def test_verdicts_follow_the_rule(side, low, high, words):
    assert verdict(1 + low, 1 + high, side, 1, 5) == words
