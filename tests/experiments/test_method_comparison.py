"""The comparison of methods: leads, groups, the Pareto front and the recommended settings."""

import math
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.experiments.method_comparison import (
    by_group,
    lead_of,
    lead_table,
    pareto_front,
    recommended,
)
from lib.experiments.method_comparison_plots import (
    by_quality,
    on_all,
    quality_vs_budget,
    quality_vs_cost,
)
from lib.measure.perplexity import Evaluation
from lib.measure.stats import mean_ci
from lib.paths import PARAMS, ROOT


def random_results(seed: int, names: list[str], texts: int, tokens: int) -> dict[str, Evaluation]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(texts, tokens, generator=generator)
    return {
        name: Evaluation(base + 0.1 * i + 0.3 * torch.rand(texts, tokens, generator=generator),
                         base > 0.5, [1])
        for i, name in enumerate(names)
    }  # fmt: skip


def test_the_best_row_is_set_against_the_others_in_pairs():
    names = ["tova_32", "h2o_32", "snapkv_32", "tova_64", "h2o_64", "keydiff_128"]
    results = {100: random_results(0, names, 7, 99), 50: random_results(1, names[:3], 7, 49)}
    every = lead_table(results, names)
    where = [[100, 32], [100, 64], [100, 128], [50, 32]]
    assert every[["length", "budget"]].values.tolist() == where
    table = every[every.budget < 128]  # the last has no other row
    assert table.best.tolist() == ["tova_32", "tova_64", "tova_32"]
    assert table.next.tolist() == ["h2o_32", "h2o_64", "h2o_32"]
    assert (table.n_texts == 7).all()
    for row in table.itertuples():
        own = results[row.length]
        gaps = (own[row.next].nll - own[row.best].nll).double().mean(-1)
        mean, low, high = mean_ci(gaps.numpy())
        found = (row.ratio, row.ratio_low, row.ratio_high)
        assert found == pytest.approx([math.exp(x) for x in (mean, low, high)])
    alone = lead_table(results, ["keydiff_128"])  # one row, and nothing beside it
    assert alone[["length", "best", "as_good"]].values.tolist() == [[100, "keydiff_128", ""]]
    assert alone.next.isna().all()
    assert alone.ratio_low.isna().all()
    # a row that is sometimes better than the best is as good as it; the last is clearly worse
    results[100]["h2o_32"].nll[:3] -= 0.2
    assert lead_table(results, names).as_good.tolist()[0] == "h2o_32"


def test_a_groups_lead_is_over_all_it_shares_with_another():
    names = ["tova_32", "h2o_32", "tova_64", "h2o_64", "tova_128"]
    results = {100: random_results(0, names, 8, 99), 50: random_results(1, names[:2], 8, 49)}
    pairs = [(100, 32), (100, 64), (50, 32)]
    gaps = [
        [
            float((results[n][f"h2o_{b}"].nll - results[n][f"tova_{b}"].nll)[i].double().mean())
            for n, b in pairs
        ]
        for i in range(8)
    ]
    expected = mean_ci([sum(row) / 3 for row in gaps])
    found = lead_of(results, "h2o", "tova", [32, 64, 128])
    assert found == pytest.approx([math.exp(x) for x in expected])
    shuffled = {name: results[100][name] for name in reversed(names)}
    assert lead_of({50: results[50], 100: shuffled}, "h2o", "tova", [64, 32]) == pytest.approx(
        found
    )


def test_groups_are_sorted_at_the_shared_budgets():
    rows = [
        ("tova", 32, 1.2),
        ("tova", 64, 1.1),
        ("h2o", 32, 1.1),
        ("h2o", 64, 1.3),
        ("h2o", 128, 0.1),
    ]
    rows += [("keydiff", 64, 1.0), ("baseline", math.inf, 1.0)]
    table = pd.DataFrame(rows, columns=["group", "budget", "ratio"])
    assert by_quality(table, [32, 64]) == ["keydiff", "tova", "h2o"]
    fronts = {
        1: pd.DataFrame({"group": ["b", "a", "a"]}),
        2: pd.DataFrame({"group": ["a", "b", "c"]}),
    }
    assert on_all(fronts) == "a; b"
    assert on_all(fronts | {3: fronts[2][2:]}) == "no method on all"
    assert on_all({1: pd.DataFrame({"group": ["streaming", "tova"]})}) == "sinks + window; tova"


def test_figures_name_methods_as_pages_do_and_show_intervals():
    values = {"length": 100, "budget": [64.0, 64.0, math.inf], "group": ["streaming", "tova", "x"]}
    table = pd.DataFrame(values).assign(method=["streaming_64", "tova_64", "baseline"])
    table[["ratio", "ratio_low", "ratio_high"]] = [[1.2, 1.1, 1.5], [2, 1.5, 4], [1, 1, 1]]
    table[["ppl", "ppl_low", "ppl_high"]] = [[12.0, 11, 15], [20, 15, 40], [10, 9, 11]]
    table[["tpot_ms", "tpot_ms_q1", "tpot_ms_q3"]] = [[1.0, 0.5, 2], [3, 2, 4], [5, 4, 7]]
    fig = quality_vs_budget(table, ["streaming", "tova"], "")
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["sinks + window", "tova"]
    (bars,) = fig.axes[0].collections
    assert [bar[:, 0].tolist() for bar in bars.get_segments()] == [[1.1, 1.5], [1.5, 4]]
    fig = quality_vs_cost(table, {100: table[:2]}, "tpot_ms", "")
    assert fig.axes[0].texts[-1].get_text() == "1 sinks + window 64\n2 tova_64"
    ends = [
        bar[:, axis].tolist()
        for axis, bars in enumerate(fig.axes[0].collections[:2])
        for bar in bars.get_segments()
    ]
    assert ends == [[0.5, 2], [11, 15]]


def test_by_group():
    names = ["baseline", "streaming_512", "l2_ratio_0.8_64", "l2_ratio_0.8"]
    table = pd.DataFrame({"method": names, "ppl_change_%": [0.0, 50, -20, 1]})
    table = table.assign(ppl_change_low=0.0, ppl_change_high=100.0)
    split = by_group(table)
    assert split.group.tolist() == ["baseline", "streaming", "l2_ratio_0.8", "l2_ratio_0.8"]
    assert split.budget.tolist() == [math.inf, 512, 64, math.inf]
    assert split.ratio.tolist() == pytest.approx([1, 1.5, 0.8, 1.01])
    assert split.ratio_high.tolist() == [2] * 4


def test_the_notebook_twice_gives_the_same_quality(tmp_path):
    tables = []
    for name in ("first", "second"):
        environment = os.environ | {"KVLAB_RESULTS": str(tmp_path / name)}
        command = [sys.executable, "-m", "lib.run", "--params", str(PARAMS / "quick.yaml"), "04"]
        subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300)
        saved = [tmp_path / name / "tables" / f"04_{x}.csv" for x in ("comparison", "best")]
        tables.append([pd.read_csv(path) for path in saved])
    (first, best), (second, other_best) = tables
    measured = [
        x for x in first if x.startswith(("ppl", "accuracy", "n_texts", "length", "method"))
    ]
    assert len(measured) == 13
    pd.testing.assert_frame_equal(first[measured], second[measured], check_exact=True)
    pd.testing.assert_frame_equal(best, other_best, check_exact=True)


costs = st.integers(0, 6)


@given(st.lists(st.tuples(costs, costs), min_size=1, max_size=30))
def test_pareto_front(points):
    table = pd.DataFrame(points, columns=["ppl", "tpot_ms"])
    front = pareto_front(table, "ppl", "tpot_ms")
    expected = [
        (ppl, time)
        for ppl, time in points
        if not any(a <= ppl and b <= time and (a < ppl or b < time) for a, b in points)
    ]
    assert sorted(zip(front.ppl, front.tpot_ms, strict=True)) == sorted(expected)
    assert front.ppl.is_monotonic_increasing


TABLE = pd.DataFrame(
    [
        (100, "baseline", 10.0, 50.0, 8.0, False),
        (100, "best", 9.5, 40.0, 4.0, False),
        (100, "fast", 10.4, 90.0, 3.0, True),
        (100, "small", 10.45, 60.0, 1.0, False),
        (100, "fastest", 10.6, 95.0, 0.5, True),
        (900, "baseline", 40.0, 20.0, 80.0, False),
        (900, "best", 12.0, 40.0, 4.0, False),
        (900, "fast", 14.0, 90.0, 3.0, True),
        (900, "untimed", 11.5, math.nan, math.nan, True),
    ],
    columns=["length", "method", "ppl", "throughput", "cache_mib", "streams"],
)


def test_recommended():
    """Within 10% of 9.5 is 10.45, of 11.5 12.65; only the longest texts tell of streams."""
    table = recommended(TABLE, 0.1)
    chosen = {(row.length, row.goal): row.method for row in table.itertuples()}
    assert chosen == {
        (100, "quality first"): "best",
        (100, "speed first"): "fast",
        (100, "least memory"): "small",
        (900, "quality first"): "untimed",
        (900, "speed first"): "best",
        (900, "least memory"): "best",
        (900, "endless streams"): "untimed",
    }
    assert table.rule[1] == "most tokens/s within 10% of the lowest perplexity"
    loose = recommended(TABLE, 0.12).set_index(["length", "goal"])
    assert loose.method[100, "speed first"] == loose.method[100, "least memory"] == "fastest"
    with pytest.raises(ValueError, match="share=2: allowed is a number from 0 to 1"):
        recommended(TABLE, 2)
