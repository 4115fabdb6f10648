"""The figures of perplexity against length: by position, rolling, by sinks, by budget, a stream."""

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.names import display_name
from lib.plots import (
    WIDTH,
    band,
    label_line_ends,
    mark,
    method_band,
    method_color,
    plain_log,
    points,
    subplots,
    thousands,
)

from .ppl_vs_length import rolling_nll


def by_position(curves: pd.DataFrame, marks: Mapping[str, int]) -> Figure:
    """Perplexity by `position`, a line for each `method`, and its ratio; `marks` names places.

    In `ratio` they are paired by text with sinks + window, which is 1 there.
    """
    fig, (top, bottom) = _two_panels(6.4)
    for name, part in curves.groupby("method", sort=False):
        method_band(top, part, "position", "ppl", name)
        method_band(bottom, part, "position", "ratio", name)
    for word, position in marks.items():
        mark(top, position, word)
        mark(bottom, position, "")
    _log_axes(top, bottom, "position in the text (tokens)")
    label_line_ends(top, gap=0.09)
    return fig


def rolling(
    nll: Mapping[str, torch.Tensor], base: torch.Tensor, width: int, marks: Mapping[str, int]
) -> Figure:
    """Mean loss of the last `width` tokens of `nll` (texts, tokens), and its excess over `base`."""
    shape = {"sharex": True, "layout": "constrained", "height_ratios": [1, 1.2]}
    fig, (top, bottom) = subplots(2, 1, figsize=(WIDTH, 5.6), **shape)
    for name, values in nll.items():
        look = {"color": method_color(name), "label": display_name(name), "lw": 1.5}
        for ax, each in ((top, values), (bottom, values - base)):
            band(ax, rolling_nll(each, width, 64), "position", "nll", **look)
    for word, position in marks.items():
        mark(top, position, word)
        mark(bottom, position, "")
    for ax, unit in ((top, "NLL (nats per token)"), (bottom, "difference (nats)")):
        ax.set_ylabel(unit)
        label_line_ends(ax, gap=0.1)
    thousands(bottom.xaxis)
    bottom.set_xlabel(f"position in the text (tokens; mean of the last {width})")
    return fig


def sink_counts(sinks: pd.DataFrame, start_size: int, budget: int) -> Figure:
    """The ratio of each number of `sinks` to that of `start_size`, and the perplexity beside it."""
    fig, ax = subplots(figsize=(WIDTH, 3.4), layout="constrained")
    for place, row in sinks.iterrows():
        color = method_color("recent_only" if row.sinks == "0" else "streaming")
        points(ax, sinks.loc[[place]], "sinks", "ratio", capsize=4, color=color)
        ax.annotate(f"{row.ppl:.1f}", (place, row.ratio), (8, 6), textcoords="offset points")
    ax.axhline(1, color="#777777", linewidth=1, linestyle=":")
    ax.set_xlabel(f"sinks (of {budget} tokens kept)")
    ax.set_ylabel(f"perplexity relative to {start_size} sinks")
    ax.margins(x=0.1)
    return fig


def budgets(by_budget: pd.DataFrame, lazy: pd.DataFrame, start: int) -> Figure:
    """Perplexity by `budget` (with buffers over `start` tokens at the mean held), and the ratio.

    `recompute`, known at a sample of the tokens only, is in the ratio alone.
    """
    fig, (top, bottom) = _two_panels(6.4)
    for name, part in by_budget.groupby("method", sort=False):
        rows = part.sort_values("budget")
        if name != "recompute":
            method_band(top, rows, "budget", "ppl", name)
        method_band(bottom, rows, "budget", "ratio", name)
    drawn = lazy[lazy.buffer > 0]
    diamonds = {"markeredgecolor": "white", "markersize": 9, "zorder": 3, "label": "_lazy"}
    color = method_color("streaming_lazy")
    (dots,) = top.plot(drawn.mean_held, drawn.ppl, "d", color=color, **diamonds)
    _log_axes(top, bottom, "budget (tokens held)")
    label_line_ends(top, gap=0.09)
    label_line_ends(bottom, gap=0.09)
    buffers = ", ".join(map(str, drawn.buffer))
    top.legend([dots], [f"{start} and a buffer of {buffers} (at the mean held)"], loc="lower left")
    return fig


def stream(flat: pd.DataFrame) -> Figure:
    """Perplexity along one stream by `position`, a line for each `method`, and below its ratio."""
    fig, (top, bottom) = _two_panels(5.4)
    for name, part in flat.groupby("method", sort=False):
        method_band(top, part, "position", "ppl", name)
        method_band(bottom, part, "position", "ratio", name)
    thousands(bottom.xaxis)
    bottom.locator_params(axis="x", nbins=5)
    plain_log(bottom.yaxis)
    bottom.set(xlabel="position in the stream (tokens)", ylabel="ratio to\nsinks + window")
    top.set(ylabel="perplexity", ylim=0)
    label_line_ends(top, gap=0.1)
    return fig


def _two_panels(height: float) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two panels above one another on one axis."""
    shape = {"sharex": True, "layout": "constrained", "height_ratios": [1.2, 1]}
    return subplots(2, 1, figsize=(WIDTH, height), **shape)


def _log_axes(top: Axes, bottom: Axes, label: str) -> None:
    """Perplexity and its ratio to sinks + window over tokens, all log axes with plain numbers."""
    bottom.set_xscale("log", base=2)
    thousands(bottom.xaxis)
    for ax, unit in ((top, "perplexity"), (bottom, "ratio to\nsinks + window")):
        plain_log(ax.yaxis)
        ax.set_ylabel(unit)
    bottom.set_xlabel(label)
