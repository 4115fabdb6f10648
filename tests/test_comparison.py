"""The comparison of methods, the speed table and the explorer."""

import math

import ipywidgets as widgets
import pandas as pd
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import FixSizeL2, L2Compress, RecentOnly, StreamingLLM, evaluate
from lib.comparison import at_budget, experiment, quality, quality_table, texts_of
from lib.explorer import Explorer
from lib.speed import change_against, measure


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
    assert at_budget("streaming", 64) == StreamingLLM(4, 60)
    assert at_budget("streaming", 64, start_size=0) == StreamingLLM(0, 64)
    assert at_budget("l2_compress", 64, skip_layers=[0]) == L2Compress(0.8, 64, (0,))
    for group, strategy in (("low", "keep_low"), ("high", "keep_high"), ("random", "random")):
        method = at_budget(f"fix_l2_{group}", 64, skip_layers=(1,), seed=3)
        assert method == FixSizeL2(64, 0.2, strategy, (1,), 3)
    with pytest.raises(ValueError, match="method='no_such': allowed is one of"):
        at_budget("no_such", 64)
    with pytest.raises(ValueError, match="budget=4: allowed is an int >= 5"):
        at_budget("recent_only", 4)


def test_quality_table():
    model, texts = cached_model("neox_25"), tiny_ids(3, 40)
    methods = experiment(["recent_only", "streaming", "fix_l2_low"], [8, 12], start_size=2)
    names = ["recent_only_8", "recent_only_12", "streaming_8", "streaming_12"]
    assert list(methods) == ["baseline", *names, "fix_l2_low_8", "fix_l2_low_12"]
    results = quality(model, texts, methods, chunk_size=4)
    table = quality_table(results).set_index("method")
    base = evaluate(model, texts)
    for name, method in methods.items():
        row, own = table.loc[name], evaluate(model, texts, method, 4)
        assert row.ppl == pytest.approx(own.ppl, rel=1e-4)
        assert row["ppl_change_%"] == pytest.approx(100 * (own.ppl / base.ppl - 1), abs=0.02)
        assert row["accuracy_%"] == pytest.approx(100 * own.accuracy)
        gain = 100 * (own.accuracy / base.accuracy - 1)
        assert row["accuracy_change_%"] == pytest.approx(gain, abs=1e-3)
        assert row.tokens_held == (39 if method is None else int(name.rsplit("_")[-1]))
        assert row.n_texts == 3
        assert row.ppl_low <= row.ppl <= row.ppl_high
    assert table.loc["baseline", "ppl_change_low"] == 0


def test_speed_table():
    model = cached_model("llama_gqa", torch.float32)
    methods = {"baseline": None, "streaming_8": StreamingLLM(2, 6)}
    runs = measure(model, methods, [10, 20], new_tokens=5, repeats=2)
    assert runs.groupby(["context", "method", "repeat"]).size().tolist() == [1] * 8
    held = {(10, "baseline"): 14, (20, "baseline"): 24, (10, "streaming_8"): 8}
    for row in runs.itertuples():
        length = held.get((row.context, row.method), 8)
        assert row.cache_length == length
        if row.method == "baseline":  # 4 bytes, keys and values, 2 layers, 2 heads of 8
            assert row.cache_mib == pytest.approx(4 * 2 * 2 * 2 * 8 * length / 2**20)
        assert min(row.ttft_s, row.tpot_ms, row.throughput) > 0


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
    nll = results["streaming_12"]
    assert table.loc["streaming_12", "ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    last = math.exp(nll[-19:].mean())  # a quarter of 79 tokens
    assert table.loc["streaming_12", "ppl_last_quarter"] == pytest.approx(last, rel=1e-5)
    assert table.n_tokens.tolist() == [79, 79, 79]


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
        next(ax for ax in fig.axes if ax.get_title() == title)
        for title in ("Seen: 2 sinks + 10 recent", "Over the whole text", "Loss by position")
    )
    heights = [bar.get_height() for bar in ppl.patches]
    expected = [math.exp(x.mean()) for x in explorer.compare(2, 10).values()]
    assert heights == pytest.approx(expected, rel=1e-5)
    labels = [line.get_label() for line in nll.lines[:3]]
    assert labels == ["dense", "window", "sinks + window"]
    assert nll.lines[3].get_xdata()[0] == 12  # where the cache is full
    # the two areas: (key, query) inside or outside, against the rule
    window, sinks = (area.get_paths()[0] for area in kept.collections)
    for query in range(1, 80, 7):
        for key in range(query):
            point = (key + 0.5, query + 0.5)
            inside = window.contains_point(point) or sinks.contains_point(point)
            assert inside == (key < 2 or key > query - 10)
