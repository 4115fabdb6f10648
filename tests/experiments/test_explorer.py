"""The explorer: its results, its sliders and its figure."""

import math

import ipywidgets as widgets
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import RecentOnly, StreamingLLM, evaluate
from lib.experiments.explorer import Explorer
from lib.measure.stats import mean_ci


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
