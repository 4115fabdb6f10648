"""The figures of perplexity against length: by position, rolling, by sinks, by budget, a stream."""

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots import (
    WIDTH,
    band,
    display_name,
    label_line_ends,
    mark,
    method_band,
    method_color,
    plain_log,
    points,
    subplots,
)

from .ppl_vs_length import rolling_nll


def by_position(curves: pd.DataFrame, marks: Mapping[str, int]) -> Figure:
    """Perplexity by `position`, a line for each `method`; `marks` names positions."""
    fig, ax = subplots(layout="constrained")
    for name, part in curves.groupby("method", sort=False):
        method_band(ax, part, "position", "ppl", name)
    for word, position in marks.items():
        mark(ax, position, word)
    _log_axes(ax, "position in the text (tokens)")
    label_line_ends(ax)
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
    bottom.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
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
    """Perplexity by `budget`, and with buffers over `start` tokens at the mean that is held."""
    fig, ax = subplots(layout="constrained")
    for name, part in by_budget.groupby("method", sort=False):
        method_band(ax, part.sort_values("budget"), "budget", "ppl", name)
    drawn = lazy[lazy.buffer > 0]
    diamonds = {"markeredgecolor": "white", "markersize": 9, "zorder": 3, "label": "_lazy"}
    color = method_color("streaming_lazy")
    (dots,) = ax.plot(drawn.mean_held, drawn.ppl, "d", color=color, **diamonds)
    _log_axes(ax, "budget (tokens held)")
    label_line_ends(ax)
    buffers = ", ".join(map(str, drawn.buffer))
    ax.legend([dots], [f"{start} and a buffer of {buffers} (at the mean held)"], loc="lower left")
    return fig


def stream(flat: pd.DataFrame) -> Figure:
    """Perplexity along one stream by `position`, a line for each `method`."""
    fig, ax = subplots(figsize=(WIDTH, 3.8), layout="constrained")
    for name, part in flat.groupby("method", sort=False):
        method_band(ax, part, "position", "ppl", name)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel="position in the stream (tokens)", ylabel="perplexity", ylim=0)
    label_line_ends(ax)
    return fig


def _log_axes(ax: Axes, label: str) -> None:
    """Perplexity over tokens, both on log axes with plain numbers."""
    ax.set_xscale("log", base=2)
    plain_log(ax.yaxis)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set(xlabel=label, ylabel="perplexity")
