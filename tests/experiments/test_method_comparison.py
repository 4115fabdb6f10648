"""The comparison of methods, the speed table and the explorer."""

import math
import os
import subprocess
import sys

import ipywidgets as widgets
import pandas as pd
import pytest
import torch
import yaml
from reference import cached_model, tiny_ids

from lib import TOVA, FixSizeL2, L2Compress, RecentOnly, StreamingLLM, evaluate
from lib.compressors import ROWS
from lib.experiments.explorer import Explorer
from lib.experiments.method_comparison import by_group, cost_table, lead_of, lead_table
from lib.experiments.method_comparison_plots import (
    by_quality,
    on_all,
    quality_vs_budget,
    quality_vs_cost,
)
from lib.load.texts import texts_of
from lib.measure.perplexity import Evaluation
from lib.measure.quality import first_tokens, quality, quality_table
from lib.measure.rows import at_budget, buffers_of, experiment, keeps_budget
from lib.measure.speed import change_against, measure
from lib.measure.stats import mean_ci
from lib.paths import NOTEBOOKS, PARAMS, ROOT
from lib.run import params


def test_texts_of():
    texts = texts_of(torch.arange(100, 121), num_texts=4, length=5)
    assert texts.tolist() == [
        [100, 101, 102, 103, 104],
        [105, 106, 107, 108, 109],
        [110, 111, 112, 113, 114],
        [115, 116, 117, 118, 119],
    ]
    with pytest.raises(ValueError, match="tokens=19: allowed is num_texts . length = 20 or more"):
        texts_of(torch.arange(19), 4, 5)
    # a special first token is every text's first; another one is nobody's
    texts = texts_of(torch.arange(20), 4, 5, bos_token_id=0)
    assert texts[:, 0].tolist() == [0] * 4
    assert texts[:, 1:].flatten().tolist() == [t for t in range(20) if t % 5]
    assert torch.equal(texts_of(torch.arange(20), 4, 5, 7), torch.arange(20).view(4, 5))


def test_at_budget():
    assert at_budget("recent_only", 64) == RecentOnly(64)
    assert at_budget("streaming", 64) == at_budget("streaming_lazy", 64) == StreamingLLM(4, 60)
    assert at_budget("streaming", 64, start_size=0) == StreamingLLM(0, 64)
    for ratio in (1.0, 0.8, 0.5):
        method = at_budget(f"l2_ratio_{ratio}", 64, skip_layers=[0])
        assert method == L2Compress(ratio, 64, (0,))
    for group, strategy in (("low", "keep_low"), ("high", "keep_high"), ("random", "random")):
        method = at_budget(f"fix_l2_{group}", 64, skip_layers=(1,), seed=3)
        assert method == FixSizeL2(64, 0.2, strategy, (1,), 3)
    with pytest.raises(ValueError, match="method='no_such': allowed is one of"):
        at_budget("no_such", 64)
    with pytest.raises(ValueError, match="budget=4: allowed is an int >= 5"):
        at_budget("recent_only", 4)


def test_what_keeps_no_budget():
    rows = experiment([name for name in ROWS if not name.startswith("kvpress")], [64])
    assert [name for name, x in rows.items() if not keeps_budget(x)] == [
        "baseline",
        "l2_ratio_1.0_64",
    ]
    model, ids = cached_model("neox_25"), tiny_ids(1, 300)
    for name, method in rows.items():
        lengths = evaluate(model, ids, method, chunk_size=16).cache_lengths
        assert (sum(lengths) / 2 <= 64) == keeps_budget(method), name


FILE = """
04_method_comparison:
  methods: [streaming, streaming_64, fix_l2_high_24, l2_ratio_0.5, recent_only_64]
  budgets: [16, 32]
  start_size: 2
  include_baseline: {baseline}
  include_recent_only: {recent_only}
  num_samples: 2
  max_tokens: 4096
  skip_layers: [1]
  seed: 5
"""


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("recent_only", [True, False])
def test_an_experiment_from_yaml(baseline, recent_only):
    content = yaml.safe_load(FILE.format(baseline=baseline, recent_only=recent_only))
    contract = params.read_contract(NOTEBOOKS / "04_method_comparison.ipynb")
    given = params.check(contract, params.section(content, "04_method_comparison"))
    assert (given.pop("num_samples"), given.pop("max_tokens")) == (2, 4096)
    rows = experiment(**given)
    expected = {"baseline": None} if baseline else {}
    if recent_only:
        expected |= {"recent_only_16": RecentOnly(16), "recent_only_32": RecentOnly(32)}
    expected |= {f"streaming_{n}": StreamingLLM(2, n - 2) for n in (16, 32, 64)}
    expected["fix_l2_high_24"] = FixSizeL2(24, 0.2, "keep_high", (1,), 5)
    expected |= {f"l2_ratio_0.5_{n}": L2Compress(0.5, n, (1,)) for n in (16, 32)}
    expected["recent_only_64"] = RecentOnly(64)
    assert rows == expected
    assert list(rows) == list(expected)


def test_wrong_experiments_are_refused():
    for name in ("streamin", "streamin_16", "streaming_", "_16"):
        with pytest.raises(ValueError, match="method='.*': allowed is one of .'streaming'"):
            experiment([name], [16])
    with pytest.raises(ValueError, match="budget=3: allowed is an int >= 5"):
        experiment(["streaming_3"], [16])
    with pytest.raises(ValueError, match=r"methods=\[\]: allowed is at least one of"):
        experiment([], [16], include_baseline=False, include_recent_only=False)


def test_buffers():
    rows = experiment(["streaming", "streaming_lazy", "tova", "keydiff", "l2_ratio_0.8"], [16])
    assert buffers_of(rows, 8) == {
        "baseline": 0,
        "recent_only_16": 0,
        "streaming_16": 0,
        "streaming_lazy_16": 7,
        "tova_16": 7,
        "keydiff_16": 7,
        "l2_ratio_0.8_16": 0,
    }


def test_quality_table():
    model, texts = cached_model("neox_25"), tiny_ids(6, 40)
    methods = experiment(["streaming", "streaming_lazy", "fix_l2_low"], [8, 12], start_size=2)
    groups = ["recent_only", "streaming", "streaming_lazy", "fix_l2_low"]
    assert list(methods) == ["baseline", *(f"{group}_{n}" for group in groups for n in (8, 12))]
    results = quality(model, texts, methods, chunk_size=4)
    table = quality_table(results).set_index("method")
    base = evaluate(model, texts)
    for name, method in methods.items():
        row = table.loc[name]
        buffer = 3 if name.startswith("streaming_lazy") else 0
        own = evaluate(model, texts, method, 4, buffer=buffer)
        assert row.ppl == pytest.approx(own.ppl, rel=1e-4)
        assert row["ppl_change_%"] == pytest.approx(100 * (own.ppl / base.ppl - 1), abs=0.02)
        assert row["accuracy_%"] == pytest.approx(100 * own.accuracy)
        gain = 100 * (own.accuracy / base.accuracy - 1)
        assert row["accuracy_change_%"] == pytest.approx(gain, abs=1e-3)
        assert row.n_texts == 6
        assert row.ppl_low <= row.ppl <= row.ppl_high
        if method is not None:
            assert row.ppl_change_low < row["ppl_change_%"] < row.ppl_change_high
    assert table.loc["baseline", "ppl_change_low"] == 0
    # paired by text: with intervals as `mean_ci` has them for the texts' own differences
    gap = (results["streaming_8"].nll - base.nll).double().mean(-1)
    expected = [100 * (math.exp(x) - 1) for x in mean_ci(gap.numpy())]
    columns = ["ppl_change_%", "ppl_change_low", "ppl_change_high"]
    assert table.loc["streaming_8", columns].tolist() == pytest.approx(expected)


def test_the_first_tokens_of_a_text_are_a_text():
    model, texts = cached_model("llama_gqa"), tiny_ids(2, 40)
    methods = experiment(["streaming_lazy", "fix_l2_high", "tova", "l2_ratio_0.5"], [8, 20])
    long = quality(model, texts, methods, chunk_size=4)
    for length in (13, 20, 21, 40):
        fitting = {n: m for n, m in methods.items() if "20" not in n or length > 20}
        own = quality(model, texts[:, :length], fitting, chunk_size=4)
        cut = first_tokens(long, length)
        assert list(cut) == list(own)
        for name, result in own.items():
            torch.testing.assert_close(cut[name].nll, result.nll)
            assert torch.equal(cut[name].correct, result.correct)


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


def test_quality_twice_is_the_same():
    model, texts = cached_model("neox_25", torch.float32), tiny_ids(2, 60)
    names = [name for name in ROWS if not name.startswith("kvpress")]
    tables = [
        quality_table(quality(model, texts, experiment(names, [16], 2, seed=7), chunk_size=4))
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    other = quality_table(quality(model, texts, experiment(names, [16], 2, seed=8), chunk_size=4))
    differ = tables[0].ppl != other.ppl
    assert tables[0].method[differ].tolist() == ["fix_l2_random_16", "random_16"]


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


def test_a_ratio_that_cannot_stay_within_its_budget_is_refused():
    model, texts = cached_model("neox_25"), tiny_ids(2, 30)
    rows = experiment(["l2_ratio_0.8"], [16])
    with pytest.raises(ValueError, match="chunk_size=5: allowed is at most 4 for l2_ratio_0.8_16"):
        quality(model, texts, rows, chunk_size=5)
    quality(model, texts, experiment(["l2_ratio_0.5"], [16]), chunk_size=16)


def test_speed_and_cost():
    model = cached_model("llama_gqa", torch.float32)
    methods = {"baseline": None, "streaming_8": StreamingLLM(2, 6), "tova_8": TOVA(8)}
    given = {"new_tokens": 5, "repeats": 2, "buffers": {"tova_8": 2}, "watch_memory": True}
    runs = measure(model, methods, [10, 20], **given)
    assert runs.groupby(["context", "method", "repeat"]).size().tolist() == [1] * 12
    # tova with a buffer of two held 10, 8, 9, 10, 8 and 8, 9, 10, 8, 9 tokens
    held = {(10, "baseline"): 12, (20, "baseline"): 22, (10, "tova_8"): 9, (20, "tova_8"): 8.8}
    most = 4 * 2 * 2 * 2 * 8 / 2**20  # 4 bytes, keys and values, 2 layers, 2 heads of 8
    for row in runs.itertuples():
        assert row.cache_length == pytest.approx(held.get((row.context, row.method), 8))
        if row.method == "baseline":
            assert row.cache_mib == pytest.approx(most * (row.context + 4))
        if row.method == "tova_8":  # wherever a run ends between two cuts; un-turned keys, too
            assert row.cache_mib == runs.cache_mib[runs.method == "tova_8"].iloc[0]
            assert most * 10 <= row.cache_mib <= 2 * most * 10
        assert min(row.ttft_s, row.tpot_ms, row.throughput) > 0
        assert 0 < row.attention_ms < row.tpot_ms
        assert row.prefill == ("streamed" if row.method == "streaming_8" else "dense")
    cost = cost_table(runs)
    assert cost.n_repeats.tolist() == [2] * 6
    own = runs[(runs.context == 20) & (runs.method == "tova_8")].tpot_ms.to_numpy()
    base = runs[(runs.context == 20) & (runs.method == "baseline")].tpot_ms.to_numpy()
    row = cost[(cost.context == 20) & (cost.method == "tova_8")].iloc[0]
    assert row.tpot_ms == pytest.approx(own.mean())  # the median of two
    assert row["tpot_ms_change_%"] == pytest.approx((100 * (own / base - 1)).mean())
    lengths = cost.set_index(["context", "method"])["cache_length_change_%"]
    assert lengths[10, "tova_8"] == pytest.approx(100 * (9 / 12 - 1))
    assert lengths[20, "tova_8"] == pytest.approx(100 * (8.8 / 22 - 1))
    with pytest.raises(ValueError, match="new_tokens=1: allowed is an int >= 2"):
        measure(model, methods, [10], new_tokens=1)


def test_by_group():
    names = ["baseline", "streaming_512", "l2_ratio_0.8_64", "l2_ratio_0.8"]
    table = pd.DataFrame({"method": names, "ppl_change_%": [0.0, 50, -20, 1]})
    table = table.assign(ppl_change_low=0.0, ppl_change_high=100.0)
    split = by_group(table)
    assert split.group.tolist() == ["baseline", "streaming", "l2_ratio_0.8", "l2_ratio_0.8"]
    assert split.budget.tolist() == [math.inf, 512, 64, math.inf]
    assert split.ratio.tolist() == pytest.approx([1, 1.5, 0.8, 1.01])
    assert split.ratio_high.tolist() == [2] * 4


def test_change_against():
    runs = pd.DataFrame(
        {
            "context": [1, 1, 2, 2, 1, 1],
            "method": ["base", "x", "x", "base", "x", "base"],
            "repeat": [0, 0, 0, 0, 1, 1],
            "tpot_ms": [10.0, 5.0, 30.0, 20.0, 8.0, 4.0],
        },
        index=[7, 3, 5, 1, 0, 2],
    )
    change = change_against(runs, "tpot_ms", "base")
    assert change.to_dict() == pytest.approx({7: 0, 3: -50, 5: 50, 1: 0, 0: 100, 2: 0})


@pytest.fixture
def explorer():
    return Explorer(cached_model("neox_25", torch.float32), tiny_ids(80))


def test_explorer_compares_equal_budgets(explorer):
    results = explorer.compare(2, 10)
    methods = {
        "baseline": None,
        "recent_only_12": RecentOnly(12),
        "streaming_12": StreamingLLM(2, 10),
    }
    assert list(results) == list(methods)
    for name, method in methods.items():
        assert torch.equal(results[name], evaluate(explorer.model, explorer.tokens, method).nll)
    again = explorer.compare(2, 10)
    assert all(again[name] is results[name] for name in results)
    # another split of the same budget is another result
    assert explorer.compare(4, 8)["recent_only_12"] is results["recent_only_12"]
    assert not torch.equal(explorer.compare(4, 8)["streaming_12"], results["streaming_12"])
    table = explorer.table(2, 10).set_index("method")
    nll, row = results["streaming_12"], table.loc["streaming_12"]
    parts = [nll[4 * i : 4 * i + 4].mean().item() for i in range(16)]  # of 79 tokens
    expected = [math.exp(x) for x in mean_ci(parts)]
    assert [row.ppl, row.ppl_low, row.ppl_high] == pytest.approx(expected, rel=1e-5)
    last = math.exp(nll[-19:].mean())  # a quarter of 79 tokens, too few for stretches
    assert row.ppl_last_quarter == pytest.approx(last, rel=1e-5)
    assert math.isnan(row.ppl_last_quarter_low)
    assert table.n_tokens.tolist() == [64, 64, 64]


def test_explorer_redraws_when_a_slider_moves(explorer, monkeypatch):
    drawn = []
    draw = Explorer.draw

    def noted(self, start_size, recent_size):
        drawn.append((start_size, recent_size))
        return draw(self, start_size, recent_size)

    monkeypatch.setattr(Explorer, "draw", noted)
    box = explorer.widget(2, 10)
    sliders, picture = box.children
    sinks, window = sliders.children
    assert isinstance(picture, widgets.Image)
    images = [bytes(picture.value)]
    for slider, value in ((sinks, 4), (window, 20), (sinks, 2), (window, 10)):
        slider.value = value
        images.append(bytes(picture.value))
    assert drawn == [(2, 10), (4, 10), (4, 20), (2, 20), (2, 10)]
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert len(set(images)) == 4
    assert images[0] == images[-1]
    assert explorer.widget(2, 10**6).children[0].children[1].value == 40  # half the text at most


def test_explorer_figure(explorer):
    fig = explorer.draw(2, 10)
    kept, ppl, nll = (
        next(ax for ax in fig.axes if title in (ax.get_title(), ax.get_title("left")))
        for title in (
            "Seen: 2 sinks + 10 recent",
            "Over the whole text",
            "Loss by position",
        )
    )
    heights = [bar.get_height() for bar in ppl.patches]
    expected = [math.exp(x[:64].mean()) for x in explorer.compare(2, 10).values()]
    assert heights == pytest.approx(expected, rel=1e-5)
    labels = [line.get_label() for line in nll.lines[:3]]
    assert labels == ["dense", "window 12", "sinks + window 12"]
    assert nll.lines[3].get_xdata()[0] == 12  # where the cache is full
    # the two areas: (key, query) inside or outside, against the rule
    window, sinks = (area.get_paths()[0] for area in kept.collections)
    for query in range(1, 80, 7):
        for key in range(query):
            point = (key + 0.5, query + 0.5)
            inside = window.contains_point(point) or sinks.contains_point(point)
            assert inside == (key < 2 or key > query - 10)
