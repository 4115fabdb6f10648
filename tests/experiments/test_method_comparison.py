"""The comparison of methods: leads, groups, the Pareto front and the recommended settings."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from reference import cached_model

from lib import TOVA
from lib.experiments.method_comparison.literature import LITERATURE, literature_table
from lib.experiments.method_comparison.plots import (
    by_quality,
    heatmap,
    highlights,
    quality_vs_budget,
    quality_vs_cost,
)
from lib.experiments.method_comparison.sentences import (
    against_base,
    beaten_in_words,
    front_in_words,
    lead_in_words,
    leading,
    level_against_base,
    on_all,
)
from lib.experiments.method_comparison.tables import (
    beaten,
    by_group,
    cost_table,
    ends_apart,
    lead_of,
    lead_table,
    level_rows,
    pareto_front,
    ranking,
    recommended,
)
from lib.measure.perplexity import Evaluation
from lib.measure.speed import measure
from lib.measure.stats import mean_ci, ppl_ci, ppl_ratio_ci
from lib.paths import PARAMS, ROOT
from lib.plots import subplots


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


def test_each_row_is_held_against_the_next():
    names = ["keydiff_32", "tova_32", "h2o_32", "snapkv_32", "tova_64"]
    results = {100: random_results(0, names, 7, 99)}
    results[100]["h2o_32"].nll[:3] -= 0.2  # now and then better than tova
    table = ranking(results, reversed(names))
    assert table.method.tolist() == names
    assert table.place.tolist() == [1, 2, 3, 4, 1]
    assert table.told_apart.tolist() == ["yes", "no", "yes", "–", "–"]
    for x, after, row in zip(names, names[1:4], table.itertuples(), strict=False):
        own = results[100]
        expected = ppl_ratio_ci(own[after].nll, own[x].nll)
        assert (row.next_ratio, row.next_ratio_low, row.next_ratio_high) == expected
        assert (row.ppl, row.ppl_low, row.ppl_high) == ppl_ci(own[x].nll)
    assert table.next_ratio[3:].isna().all()
    # of four rows two are best and two are worst, tova and h2o being alike; one row is neither
    assert ends_apart(results, names) == {(100, 32): (3, 4), (100, 64): (0, 0)}
    assert ends_apart(results, names, count=1) == {(100, 32): (1, 1), (100, 64): (0, 0)}


def test_the_literature_stands_beside_what_was_run():
    names = ["baseline", "fix_l2_low_512", "fix_l2_random_512", "recent_only_512"]
    results = random_results(0, names, 7, 99)
    table = literature_table(results)
    assert len(table) == len(LITERATURE)
    run = [one.method in names for one in LITERATURE]
    assert ((table.verdict == "not run") != run).all()
    assert (table.ours_low.isna() != run).all()
    rows = table.set_index(["pattern", "measure"])
    row = rows.loc["fix_l2_random_512 against dense", "perplexity"]
    gaps = results["fix_l2_random_512"].nll - results["baseline"].nll
    found = mean_ci(gaps.double().mean(-1).numpy())
    expected = [100 * (math.exp(x) - 1) for x in found]
    assert row[["ours_%", "ours_low", "ours_high"]].tolist() == pytest.approx(expected)
    assert (row.verdict, row.n_texts) == ("holds", 7)
    assert row["theirs_%"] == 7.9
    own = rows.loc["fix_l2_low_512 against dense", "accuracy"]
    right, dense = (results[name].correct.float() for name in ("fix_l2_low_512", "baseline"))
    assert own["ours_%"] == pytest.approx(100 * float(right.mean() / dense.mean() - 1), abs=1e-4)
    assert own["theirs_%"] == -1.6
    large = rows.loc["window 512 against dense", "perplexity"]
    assert large["theirs_%"].tolist() == pytest.approx([9.5, 111.56], abs=0.01)
    assert table.groupby("pattern").claim.nunique().max() == 1  # one of perplexity and accuracy
    assert set(table.claim[table["theirs_%"].abs() > 7]) == {"worse"}


def test_a_claim_is_judged_alike_by_perplexity_and_accuracy():
    """Far worse than dense in both is "worse" in both, whatever the size of the reported change."""
    dense = random_results(0, ["baseline"], 7, 99)["baseline"]
    right = torch.rand(7, 99, generator=torch.Generator().manual_seed(2))
    dense = replace(dense, correct=right < 0.6)
    bad = replace(dense, nll=dense.nll + 1, correct=right < 0.3)
    table = literature_table({"baseline": dense, "recent_only_512": bad, "streaming_1024": bad})
    verdicts = table[table.verdict != "not run"].groupby("claim").verdict.unique()
    assert verdicts.map(list).to_dict() == {"worse": ["holds"], "as good": ["does not hold"]}


def test_the_size_of_a_change_is_held_against_theirs():
    results = random_results(0, ["baseline", "streaming_1024", "recent_only_512"], 7, 99)
    dense = results["baseline"]
    twice, alike = (
        replace(dense, nll=dense.nll + gap + noise)
        for noise in [0.01 * torch.randn(7, 99, generator=torch.Generator().manual_seed(1))]
        for gap in (math.log(2), math.log(1.095))
    )
    table = literature_table({"baseline": dense, "streaming_1024": twice, "recent_only_512": alike})
    rows = table[table.measure == "perplexity"].set_index(["source", "pattern"])
    large = "report on Pythia-2.8b: 32.75 against 15.48"
    expected = {  # a change of 2% says "about as good": twice as much is not
        ("report on Pythia-70m", "sinks + window 1024 against dense"): "does not hold, larger here",
        ("report on Pythia-70m", "window 512 against dense"): "holds, as theirs",
        (large, "window 512 against dense"): "holds, smaller here",
    }
    for place, words in expected.items():
        assert f"{rows.verdict[place]}, {rows['size'][place]}" == words
    assert (table["size"][table.verdict == "not run"] == "not run").all()


def test_a_front_in_words_goes_from_the_least_cost():
    rows = pd.DataFrame({"method": ["tova_32", "recent_only_32"], "ms": [1, 2], "ppl": [4, 3]})
    fronts = {n: pareto_front(rows, "ms", "ppl") for n in (64, 2024)}
    told = "tova_32, window 32"
    assert front_in_words(fronts) == f"at 64 tokens {told}; at 2,024 tokens {told}"


def test_the_level_rows_and_what_they_cost():
    leads = pd.DataFrame(
        {"length": [9, 9], "budget": [32, 64], "best": ["tova_32", "h2o_64"]}
    ).assign(as_good=["h2o_32, snapkv_32", ""])
    level = level_rows(leads)
    assert level.method.tolist() == ["tova_32", "h2o_32", "snapkv_32", "h2o_64"]
    assert level.group.tolist() == ["tova", "h2o", "snapkv", "h2o"]
    assert level.budget.tolist() == [32, 32, 32, 64]
    three = level[:3].assign(**{"ms_change_%": [-50.0, 0.0, 10.0], "ppl": [3.0, 2.0, 4.0]})
    assert level_against_base(three, "dense", "ms", "time") == (
        "9 tokens, 32 kept: h2o lowest, 2 not told apart from it; time 0.50 to 1.10 of dense"
    )


def test_a_row_is_beaten_only_where_quartiles_part():
    rows = pd.DataFrame(
        [
            ("tova_32", 3.0, 5.0, 6.0),
            ("h2o_32", 3.0, 6.1, 7.0),  # as good and slower
            ("snapkv_32", 4.0, 6.0, 9.0),  # worse, but its times meet those of the first
            ("keydiff_32", 2.0, 8.0, 9.0),  # slower than all and best
            ("lagkv_32", 5.0, 10.0, 12.0),  # worse and slower than all
        ],
        columns=["method", "ppl", "ms_q1", "ms_q3"],
    ).assign(ms=[5.5, 6.5, 7.0, 8.5, 11.0])
    found = beaten(rows, "ms")
    assert found.method.tolist() == ["h2o_32", "lagkv_32"]
    assert beaten_in_words({9: found, 2024: found[:0]}) == (
        "at 9 tokens h2o_32, lagkv_32; at 2,024 tokens no row"
    )


def test_all_that_are_level_are_bold_and_nothing_else():
    values = [(9, 32, "a", 1.0), (9, 32, "b", 1.1), (9, 32, "c", 3.0), (9, 64, "a", 1.2)]
    values += [(9, 64, "b", 1.0), (9, 64, "c", 2.0)]
    table = pd.DataFrame(values, columns=["length", "budget", "group", "ratio"])
    bold = table.iloc[[0, 1, 4]][["length", "budget", "group"]]
    _, ax = subplots()
    heatmap(ax, table, "ratio", ["a", "b", "c"], "", bold)
    weights = {text.get_text(): text.get_weight() for text in ax.texts if "." in text.get_text()}
    heavy = [text.get_text() for text in ax.texts if text.get_weight() == "bold"]
    assert sorted(heavy) == ["1.00", "1.00", "1.10"]
    assert weights["1.20"] == weights["3.00"] == weights["2.00"] == "normal"


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
    behind = lead_of(results, "tova", "h2o", [32, 64, 128])
    assert behind[2] < 1  # an interval of ratios is not cut at 1
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
    assert by_quality(table, [32, 64]) == ["tova", "h2o"]  # keydiff has none of 32
    assert by_quality(table, [64]) == ["keydiff", "tova", "h2o"]
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
    fig = quality_vs_cost(table, {100: table[:2]}, "tpot_ms", ("", ""), ["streaming"])
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts == ["1 sinks + window 64\n2 tova_64", "1", "2"]
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["all others", "sinks + window"]
    # bars of tova, which is on the front, and of sinks + window; x has none
    bars = [x for x in fig.axes[0].collections if isinstance(x, LineCollection)]
    ends = [
        bar[:, number % 2].tolist() for number, x in enumerate(bars) for bar in x.get_segments()
    ]
    assert ends == [[2, 4], [1.5, 4], [0.5, 2], [1.1, 1.5]]
    near = table.assign(ratio=1.2, tpot_ms=[1.0, 1.001, 3.0])
    fig = quality_vs_cost(near, {100: near}, "tpot_ms", ("", ""), ["streaming"])
    assert [text.get_text() for text in fig.axes[0].texts[1:]] == ["1, 2", "3"]


def test_five_groups_stand_out():
    groups = ["lagkv", "streaming", "h2o", "recent_only", "keydiff"]
    five = ["baseline", "recent_only", "streaming", "lagkv", "keydiff"]
    assert highlights(groups, [*groups, "baseline"]) == five
    assert highlights(groups, ["streaming", "keydiff", "h2o"]) == ["streaming", "keydiff"]
    assert highlights(["streaming"], ["streaming"]) == ["streaming"]


def test_titles_name_metric_and_interval_and_crown_no_tie():
    assert lead_in_words("streaming", "tova", (1.05, 1.02, 1.081)) == (
        "sinks + window has the lowest perplexity, the next, tova, +5.0% (+2.0 to +8.1)"
    )
    assert lead_in_words("h2o", "tova", (1.05, 0.99, 1.1)) == (
        "The two lowest in perplexity, h2o and tova, are not told apart: +5.0% (-1.0 to +10.0)"
    )
    row = {"method": "tova_64", "length": 5000, "group": "tova", "ppl": 9.0}
    row |= {"ppl_change_%": 1.26, "ppl_change_low": -0.5, "ppl_change_high": 3.0}
    row |= {"tpot_ms_change_%": -10.2, "tpot_ms_change_%_q1": -12, "tpot_ms_change_%_q3": -8}
    row |= {"cache_mib_change_%": -50.0}
    others = [row | {"ppl": 10.0}, row | {"ppl": 1, "group": "baseline"}, row | {"length": 3}]
    best = leading(pd.DataFrame([*others, row]))
    assert best.ppl == 9
    assert against_base(best, "dense", {"tpot_ms": "time", "cache_mib": "bytes"}) == (
        "tova_64 at 5,000 tokens against dense: perplexity +1.3% (-0.5 to +3.0), "
        "time -10% [-12 to -8], bytes -50%"
    )


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


def test_costs_are_medians_and_their_changes_against_dense():
    model = cached_model("llama_gqa", torch.float32)
    given = {"new_tokens": 5, "repeats": 2, "buffers": {"tova_8": 2}, "watch_memory": True}
    runs = measure(model, {"baseline": None, "tova_8": TOVA(8)}, [10, 20], **given)
    cost = cost_table(runs)
    assert cost.n_repeats.tolist() == [2] * 4
    own = runs[(runs.context == 20) & (runs.method == "tova_8")].tpot_ms.to_numpy()
    base = runs[(runs.context == 20) & (runs.method == "baseline")].tpot_ms.to_numpy()
    row = cost[(cost.context == 20) & (cost.method == "tova_8")].iloc[0]
    assert row.tpot_ms == pytest.approx(own.mean())  # the median of two
    assert row["tpot_ms_change_%"] == pytest.approx(100 * (own.mean() / base.mean() - 1))
    lengths = cost.set_index(["context", "method"])["cache_length_change_%"]
    assert lengths[10, "tova_8"] == pytest.approx(100 * (9 / 12 - 1))
    assert lengths[20, "tova_8"] == pytest.approx(100 * (8.8 / 22 - 1))
