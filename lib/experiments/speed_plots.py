"""The speed notebook's figures: times and memory against context, and the parts of a step."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.measure.rows import BASELINE
from lib.names import display_name
from lib.plots import BLUE, GREY, VERMILLION, WIDTH, method_band, plain_log, subplots

PANELS = {
    "ttft_s": "time to first token (s)",
    "tpot_ms": "time per output token (ms)",
    "throughput": "decoding (tokens/s)",
    "cache_mib": "cache, allocated (MiB)",
}
PARTS = {
    "rest_ms": ("rest of the model", GREY),
    "attention_ms": ("attention", BLUE),
    "bookkeeping_ms": ("cache", VERMILLION),
}


def speed_panels(speed: pd.DataFrame) -> Figure:
    """A panel for each of `PANELS`, a line for each method; bands are quartiles over repeats.

    `speed` has columns `context` and `method`, those of `PANELS`, and `<x>_q1`, `<x>_q3` of times.
    """
    fig, axes = subplots(2, 2, figsize=(WIDTH, 6.4), sharex=True, layout="constrained")
    for (column, label), ax in zip(PANELS.items(), axes.flat, strict=True):
        for name, part in speed.groupby("method", sort=False):
            method_band(ax, part, "context", column, name)
        ax.set_xscale("log", base=2)
        if column in ("ttft_s", "cache_mib"):
            plain_log(ax.yaxis)
        else:
            ax.set_ylim(bottom=0)
        ax.set_title(label, fontsize=12, weight="normal")
    contexts = sorted(speed.context.unique())
    for ax in axes[1]:
        ax.set_xticks(contexts, [f"{length:,}" for length in contexts], fontsize=10)
        _name_contexts(ax)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=10, handlelength=3)
    return fig


def step_parts(parts: pd.DataFrame) -> Figure:
    """A panel for each method, a bar for each context: the `PARTS` of a decoding step, stacked.

    `parts` has columns `method`, `context` and those of `PARTS`, in milliseconds.
    """
    count = parts.method.nunique()
    fig, axes = subplots(1, count, figsize=(WIDTH, 3.8), sharey=True, layout="constrained")
    for ax, (name, part) in zip(axes, parts.groupby("method", sort=False), strict=True):
        ticks, bottom = [f"{length:,}" for length in part.context], 0
        for column, (label, color) in PARTS.items():
            ax.bar(ticks, part[column], bottom=bottom, color=color, label=label, width=0.7)
            bottom = bottom + part[column]
        title = f"{display_name(name)}, DynamicCache" if name == BASELINE else display_name(name)
        ax.set_title(title, fontsize=12, weight="normal")
        _name_contexts(ax)
    axes[0].set_ylabel("ms per token")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], labels[::-1], fontsize=10)
    return fig


def _name_contexts(ax: Axes) -> None:
    ax.set_xlabel("context (tokens)")
    ax.tick_params(axis="x", rotation=30)
