"""The figures of recall: copies, their price, passkeys, and a stream of facts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lib.measure.rows import BASELINE
from lib.names import display_name
from lib.plots import BLACK, GREY, WIDTH, band, method_style, plain_log, points, subplots

from .sentences import LITTLE, NEAR


def budget_colors(budgets: Sequence[int]) -> list[tuple]:
    """A colour for each budget, the largest darkest."""
    return list(colormaps["plasma"](np.linspace(0.75, 0.25, len(budgets))))


def copying_panels(copied: pd.DataFrame, budgets: Sequence[int]) -> Figure:
    """Copying by distance, a panel for each method: its budgets, and dense attention (dashed)."""
    groups = copied.group[copied.method != BASELINE].unique()
    down = -(-len(groups) // 5)
    across = -(-len(groups) // down)
    shape = {"figsize": (WIDTH + 1, 1.9 * down + 1.2), "layout": "constrained"}
    fig, axes = subplots(down, across, sharex=True, sharey=True, squeeze=False, **shape)
    for group, ax in zip(groups, axes.flat, strict=False):
        copying_panel(ax, copied, group, budgets)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    look = {"title": "distance to the first copy (tokens); dotted: the budgets"}
    look |= {"loc": "outside lower center", "ncols": 1 + len(budgets), "fontsize": 10}
    fig.legend(*axes[0, 0].get_legend_handles_labels(), title_fontsize=12, **look)
    fig.supylabel(f"copied right (%), {copied.n_texts.max()} texts", fontsize=12)
    return fig


def copying_panel(ax: Axes, copied: pd.DataFrame, group: str, budgets: Sequence[int]) -> None:
    """Copying by distance of one method, a line for each budget."""
    lines = [(copied[copied.method == BASELINE], "--", BLACK, display_name(BASELINE))]
    for budget, color in zip(budgets, budget_colors(budgets), strict=True):
        own = copied[(copied.group == group) & (copied.budget == budget)]
        lines.append((own, "-", color, f"budget {budget:,}"))
        ax.axvline(budget, color=color, lw=1, ls=":")
    for part, line, color, label in lines:
        look = {"ls": line, "color": color, "marker": "o", "ms": 4, "label": label}
        band(ax, part, "distance", "accuracy_%", **look)
    distances = copied.distance.unique()
    ax.set_title(display_name(group), fontsize=11, weight="normal", pad=5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(distances, [f"{distance:,}" for distance in distances])
    ax.tick_params(axis="x", labelsize=9, labelrotation=45)
    ax.set(ylim=(-4, 104), yticks=(0, 50, 100))


def price_panels(axes: np.ndarray, price: pd.DataFrame, budgets: Sequence[int]) -> None:
    """Perplexity and copying side by side, a line for each group in the order of perplexity.

    Shaded: near dense attention's perplexity (`NEAR`), and little of its copying (`LITTLE`).
    """
    last = price[price.budget == max(budgets)].set_index("group")
    order = [BASELINE, *last.drop(index=BASELINE).sort_values("ratio").index]
    for place, (budget, color) in enumerate(zip(budgets, budget_colors(budgets), strict=True)):
        part = price[price.budget == budget].set_index("group").loc[order]
        part["y"] = np.arange(len(order)) + 0.25 * (place - (len(budgets) - 1) / 2)
        for ax, column in zip(axes, ("ratio", "accuracy_%"), strict=True):
            look = {"color": color, "ms": 5, "capsize": 2, "label": f"budget {budget:,}"}
            points(ax, part, column, "y", **look)
    left, right = axes
    plain_log(left.xaxis)
    left.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    left.set_xlabel(f"perplexity / {display_name(BASELINE)}")
    left.set_yticks(range(len(order)), map(display_name, order))
    left.invert_yaxis()
    left.axvspan(1, NEAR, color=GREY, alpha=0.2, lw=0)
    right.axvspan(0, LITTLE * last.loc[BASELINE, "accuracy_%"], color=GREY, alpha=0.2, lw=0)
    right.set(xlabel="copied from beyond the budget (%)", xlim=(-3, 103))


def passkey_panels(found: pd.DataFrame, groups: Sequence[str], budgets: Sequence[int]) -> Figure:
    """A panel for each of `budgets`, a row each, and length of the prompts.

    The lengths of a single budget stand in rows of two.
    """
    lengths = found.length.unique()
    across = min(2, len(lengths)) if len(budgets) == 1 else len(lengths)
    pairs = [(budget, length) for budget in budgets for length in lengths]
    down = -(-len(pairs) // across)
    size = (max(WIDTH, 1.6 + 2.4 * across), down * (0.3 * len(groups) + 0.6) + 0.6)
    shape = {"figsize": size, "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = subplots(down, across, squeeze=False, **shape)
    for place, (ax, (budget, length)) in enumerate(zip(axes.flat, pairs, strict=False)):
        at = found[(found.length == length) & found.budget.isin([budget, np.inf])]
        passkey_panel(ax, at, groups)
        ax.set_ylabel(f"budget {budget:,}" if place % across == 0 else "")
        if place < len(lengths):
            ax.set_title(f"{length:,} tokens", fontsize=12, weight="normal")
    for ax in axes.flat[len(pairs) :]:
        ax.set_visible(False)
    below = (
        f"depth in the prompt (0 is its beginning), {found.n_texts.max()} prompts of each length"
    )
    fig.supxlabel(below, fontsize=12)
    fig.colorbar(axes[0, 0].collections[0], ax=axes, shrink=0.6, label="passkeys retrieved (%)")
    return fig


def passkey_panel(ax: Axes, found: pd.DataFrame, groups: Sequence[str]) -> None:
    """Passkeys retrieved by method and depth, in numbers: `found` at one length and budget."""
    grid = found.pivot(index="group", columns="depth", values="accuracy_%").loc[list(groups)]
    look = {"vmin": 0, "vmax": 100, "cmap": "cividis", "annot": True, "fmt": ".0f", "cbar": False}
    sns.heatmap(grid.astype(float), ax=ax, annot_kws={"size": 9}, **look)
    ax.set(xlabel="", ylabel="", yticklabels=map(display_name, groups))
    ax.tick_params(axis="both", labelrotation=0, labelsize=10)


def stream_recall(recalled: pd.DataFrame, budget: int) -> Figure:
    """Facts recalled by `distance`, a line for each method; dotted: the budget."""
    fig, ax = subplots(layout="constrained")
    methods = recalled.groupby("method", sort=False)
    for place, (name, part) in enumerate(methods):
        # side by side, so that points at the same height are seen
        part = part.assign(distance=part.distance * 1.04 ** (place - (len(methods) - 1) / 2))
        style = method_style(name)
        look = {"color": style.color, "fmt": f"{style.marker}-", "lw": 1.5, "elinewidth": 1}
        points(ax, part, "distance", "accuracy_%", label=display_name(name), capsize=2, **look)
    distances = recalled.distance.unique()
    ax.set_xscale("log", base=2)
    ax.set_xticks(distances, [f"{distance:,}" for distance in distances])
    ax.set(xlabel="distance from the fact to its question (tokens)", ylim=(-4, 104))
    ax.set_ylabel(f"recalled (%)\n{_span(recalled.n_questions)} questions a point")
    ax.axvline(budget, color=GREY, lw=1, ls=":")
    fig.legend(loc="outside right center", fontsize=10, title="dotted: the budget")
    return fig


def _span(counts: pd.Series) -> str:
    """`18 to 24`, or `18` where all are alike."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"
