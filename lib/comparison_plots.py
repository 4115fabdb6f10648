"""The comparison's figures: quality by method and budget, quality against speed, all in numbers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from .plots import BLACK, BLUE, ORANGE, SKY, VERMILLION, method_style, plain_log

BUDGET_COLORS = (SKY, BLUE, BLACK, ORANGE, VERMILLION)


def by_quality(table: pd.DataFrame) -> list[str]:
    """The groups of a comparison, best first: by their mean log ratio where all have a budget."""
    kept = table[np.isfinite(table.budget)]
    counts = kept.groupby(["length", "budget"]).group.nunique()
    shared = counts[counts == counts.max()].index
    common = kept.set_index(["length", "budget"]).loc[shared]
    means = common.assign(log=np.log(common.ratio)).groupby("group").log.mean()
    return means.sort_values().index.tolist()


def quality_by_budget(ax: Axes, part: pd.DataFrame, groups: Sequence[str]) -> None:
    """A line of dots for each of `groups`, one for each budget, with the interval over texts.

    `part` has columns `group`, `budget`, `ratio`, `ratio_low` and `ratio_high`, at one length.
    """
    budgets = sorted(part.budget[np.isfinite(part.budget)].unique())
    offsets = np.linspace(-0.22, 0.22, len(budgets)) if len(budgets) > 1 else [0]
    for budget, offset, color in zip(budgets, offsets, BUDGET_COLORS, strict=False):
        own = part[(part.budget == budget) & part.group.isin(groups)]
        heights = [groups.index(group) + offset for group in own.group]
        spread = [own.ratio - own.ratio_low, own.ratio_high - own.ratio]
        look = {"fmt": "o", "color": color, "markersize": 5, "elinewidth": 1.2}
        ax.errorbar(own.ratio, heights, xerr=spread, label=f"{budget:.0f}", **look)
    ax.axvline(1, color=BLACK, linewidth=1, linestyle=":")
    plain_log(ax.xaxis)
    ax.set_yticks(range(len(groups)), groups, fontsize=10)
    ax.set_ylim(len(groups) - 0.5, -0.5)  # the best on top
    ax.grid(False, axis="y")


def quality_by_speed(ax: Axes, part: pd.DataFrame, front: pd.DataFrame) -> None:
    """Perplexity against time per token with the spread of both; a line joins the `front`.

    The front's rows are numbered, and named beside the panel.
    """
    bars = {"fmt": "none", "elinewidth": 1, "alpha": 0.35}
    for group, own in part.groupby("group", sort=False):
        style = method_style(group)
        look = {"color": style.color, "marker": style.marker, "linestyle": ""}
        times = [own.tpot_ms - own.tpot_ms_q1, own.tpot_ms_q3 - own.tpot_ms]
        texts = [own.ppl - own.ppl_low, own.ppl_high - own.ppl]
        ax.errorbar(own.tpot_ms, own.ppl, texts, times, **bars, ecolor=style.color)
        ax.plot(own.tpot_ms, own.ppl, label=group, markeredgewidth=0, markersize=8, **look)
    ax.plot(front.tpot_ms, front.ppl, color=BLACK, linewidth=1, zorder=0, drawstyle="steps-post")
    near = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 10, "weight": "bold"}
    for number, row in enumerate(front.itertuples(), start=1):
        ax.annotate(str(number), (row.tpot_ms, row.ppl), **near)
    names = [f"{number} {name}" for number, name in enumerate(front.method, start=1)]
    ax.text(1.02, 1, "\n".join(names), transform=ax.transAxes, va="top", fontsize=10)
    plain_log(ax.yaxis)


def heatmap(ax: Axes, table: pd.DataFrame, column: str, groups: Sequence[str], title: str) -> None:
    """`column` in numbers, and as a colour on a log scale about 1: groups by length and budget.

    The lowest number of each length and budget is bold; gaps part the lengths.
    """
    kept = table[table.group.isin(groups)].dropna(subset=column)
    grid = kept.pivot(index="group", columns=["length", "budget"], values=column)
    grid = grid.reindex(groups).sort_index(axis=1)
    far = max(1.05, float(np.nanmax(np.abs(np.log(grid.to_numpy())))))
    norm = LogNorm(np.exp(-far), np.exp(far))
    sns.heatmap(grid, ax=ax, annot=True, fmt=".2f", annot_kws={"fontsize": 9}, linewidths=0.5,
                cmap="RdBu_r", norm=norm, cbar=False)  # fmt: skip
    lowest = {(grid.columns.get_loc(c) + 0.5, groups.index(grid[c].idxmin()) + 0.5) for c in grid}
    for number in ax.texts:
        number.set_weight("bold" if number.get_position() in lowest else "normal")
    lengths = [length for length, _ in grid]
    starts = [place for place, length in enumerate(lengths) if length not in lengths[:place]]
    ax.vlines(starts[1:], 0, len(groups), color="white", linewidth=5)
    ax.grid(False)
    ax.set_xticklabels([f"{budget:.0f}" for _, budget in grid], rotation=90, fontsize=9)
    ax.set_yticklabels(groups, rotation=0, fontsize=10)
    for start, end in zip(starts, [*starts[1:], grid.shape[1]], strict=True):
        name = f"{lengths[start]:,}"
        ax.text((start + end) / 2, -0.25, name, ha="center", fontsize=10)
    ax.set(ylabel="", xlabel="budget")
    ax.set_title(title, fontsize=12, weight="normal", pad=20)
