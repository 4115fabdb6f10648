"""The figures of what happens inside the cache: what a query sees, how much is held, and where."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lib.names import display_name
from lib.plots import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILLION,
    WIDTH,
    label_line_ends,
    method_color,
    subplots,
    thousands,
)

from .cache_mechanics import Followed

NAVY, PALE = "#003B5C", "#E9E9E9"  # the query itself; tokens that have left


def what_a_query_sees(seen: Mapping[str, np.ndarray], start_size: int, budget: int) -> Figure:
    """Three panels, dense, window and sinks + window: row t is query t, column j token j.

    `seen` holds (T, T) pictures of `follow_tokens`, 1 where the query sees the token; the first
    `start_size` of the `budget` tokens that stay are named as the sinks.
    """
    fig, axes = subplots(1, 3, figsize=(WIDTH, 3.85))
    fig.subplots_adjust(left=0.06, right=0.995, top=0.83, bottom=0.27, wspace=0.1)
    recent = budget - start_size
    told = {
        "baseline": "keeps every token:\nmemory grows without end",
        "recent_only": f"keeps the last {budget} tokens:\nthe first ones leave",
        "streaming": f"keeps the first {start_size}, the sinks,\nand the last {recent}",
    }
    for ax, (name, below) in zip(axes, told.items(), strict=True):
        _cells(ax, seen[name], start_size if name == "streaming" else 0)
        ax.set_title(display_name(name), fontsize=13)
        ax.text(0.5, -0.06, below, transform=ax.transAxes, ha="center", va="top", fontsize=10.5)
    _words(axes, len(seen["baseline"]), start_size, budget)
    return fig


def _cells(ax: Axes, seen: np.ndarray, start_size: int) -> None:
    """A square for each token up to the query; what has left is pale and crossed."""
    total = len(seen)
    for t in range(total):
        for j in range(t + 1):
            color = NAVY if j == t else ORANGE if j < start_size else BLUE
            look = {"facecolor": color if seen[t, j] else PALE, "edgecolor": "white", "lw": 1.2}
            ax.add_patch(Rectangle((j, t), 1, 1, **look))
            if not seen[t, j]:
                ax.plot(j + 0.5, t + 0.5, marker="x", ms=2.6, mew=0.7, color="#A8A8A8")
    ax.set(xlim=(0, total), ylim=(total, 0), xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _words(axes: np.ndarray, total: int, start_size: int, budget: int) -> None:
    """What the colours mean, written on them or in the empty corner of what is still to come."""

    def write(ax: Axes, x: float, y: float, text: str, color: str, ground: str, turn: int = 0):
        rim = [withStroke(linewidth=5, foreground=ground)]  # no grid lines through the letters
        place = {"ha": "center", "va": "center", "rotation": turn, "rotation_mode": "anchor"}
        ax.text(x, y, text, color=color, fontsize=11, weight="bold", path_effects=rim, **place)

    dense, window, both = axes
    write(dense, 0.35 * total, 0.72 * total, "seen", "white", BLUE)
    for ax, sinks in ((window, 0), (both, start_size)):
        at = 0.64 * total
        write(ax, at - (budget - sinks) / 2 + 0.5, at + 0.5, "window", "white", BLUE, -45)
        write(ax, sinks + 0.19 * total, 0.89 * total, "evicted", "#555555", PALE)
    write(both, start_size / 2, 0.6 * total, "sinks", BLACK, ORANGE, 90)
    dense.text(1.5, 0.5, "tokens of the text →", va="center", fontsize=10.5)
    dense.set_ylabel("←  queries, one a row", fontsize=10.5)
    corner = {"fontsize": 10.5, "color": "#777777", "ha": "center", "va": "center"}
    dense.text(0.72 * total, 0.3 * total, "still to come", **corner)
    own = total // 2 + 0.5
    look = {"arrowstyle": "-", "color": NAVY, "shrinkB": 4}
    place = {"fontsize": 10.5, "color": NAVY, "ha": "center", "va": "center", "arrowprops": look}
    window.annotate("the query itself", (own, own), (0.7 * total, 0.2 * total), **place)


def cache_lengths(traced: pd.DataFrame, first: int) -> Figure:
    """Tokens held and cuts so far by step, from step `first` on: what `trace` returns."""
    shape = {"sharex": True, "height_ratios": [3, 2], "layout": "constrained"}
    fig, (top, bottom) = subplots(2, 1, figsize=(WIDTH, 5.6), **shape)
    for name, part in traced[traced.step >= first].groupby("method", sort=False):
        look = {"color": method_color(name), "label": display_name(name)}
        top.plot(part.step, part.held, **look)
        bottom.plot(part.step, part.evictions, **look)
    top.set_yscale("log", base=2)
    thousands(top.yaxis)
    top.set(ylabel="tokens held", ylim=(first, None))
    bottom.set_yscale("symlog", linthresh=1)  # from none, which dense attention stays at
    thousands(bottom.yaxis)
    last = traced.step.max()
    bottom.set(xlabel="step (tokens fed)", ylabel="evictions so far", xlim=(first, last))
    bottom.set_ylim(0, None)
    fig.align_ylabels()
    for ax in (top, bottom):
        label_line_ends(ax, gap=0.1)
    return fig


def kept_tokens(followed: Mapping[str, Followed]) -> Figure:
    """What each step sees, a picture for each of four runs of `follow_tokens`."""
    shape = {"sharex": True, "sharey": True, "layout": "constrained"}
    fig, axes = subplots(2, 2, figsize=(WIDTH, 7.4), **shape)
    for ax, (name, one) in zip(axes.flat, followed.items(), strict=True):
        image = ax.imshow(one.seen, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(display_name(name), fontsize=12, weight="normal")
        ax.grid(False)
    fig.supxlabel("token (index in the text)", fontsize=12)
    fig.supylabel("step (token fed)", fontsize=12)
    fig.colorbar(image, ax=axes, shrink=0.5, label="share of heads that see the token")
    return fig


def key_places(runs: Mapping[str, Mapping[str, Followed]], layer: int) -> Figure:
    """Distance by token at the last step, all heads of a layer: a panel for each of two methods.

    `runs` holds them for `in_cache` and for `original` positions.
    """
    looks = {"original": (VERMILLION, "x", 14), "in_cache": (BLUE, "o", 34)}  # rings about them
    fig, axes = subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True, layout="constrained")
    for positions, (color, marker, size) in looks.items():
        look = {"s": size, "marker": marker, "linewidths": 1, "alpha": 0.7}
        look |= {"color": color} if marker == "x" else {"fc": "none", "ec": color}
        for ax, (name, one) in zip(axes, runs[positions].items(), strict=True):
            places = one.tokens[layer].ravel(), one.distances[layer].ravel()
            ax.scatter(*places, label=positions, **look)
            ax.set_title(f"{display_name(name)}, layer {layer}", fontsize=12, weight="normal")
            ax.set(xlabel="token (index in the text)", xlim=(-4, len(one.seen) + 3))
    axes[0].set_ylabel("distance from the query (positions)")
    axes[1].legend(title="positions")
    return fig
