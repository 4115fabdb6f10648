"""The comparison's figures: quality by method and budget, quality against cost, all in numbers."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lib.measure.rows import BASELINE
from lib.names import display_name
from lib.plots import (
    BLACK,
    BLUE,
    GREY,
    LINES,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    method_style,
    plain_log,
    points,
    subplots,
)

BUDGET_COLORS = (SKY, BLUE, BLACK, ORANGE, VERMILLION)
# how strategies of one method, which share a colour and a marker, are told apart
FILLS = {"-": "full", "--": "none", ":": "left"}


def by_quality(table: pd.DataFrame, budgets: Sequence[int]) -> list[str]:
    """The groups that have all of `budgets`, best first: by their mean log ratio."""
    shared = table[table.budget.isin(budgets)]
    whole = shared.groupby("group").budget.nunique() == shared.budget.nunique()
    shared = shared[shared.group.map(whole)]
    means = shared.assign(log=np.log(shared.ratio)).groupby("group").log.mean()
    return means.sort_values().index.tolist()


def quality_vs_budget(table: pd.DataFrame, groups: Sequence[str], label: str) -> Figure:
    """Perplexity ratios of `groups` (rows) in a panel for each length."""
    lengths = table.length.unique()
    look = {"figsize": (WIDTH, 0.27 * len(groups) + 1.9), "layout": "constrained"}
    fig, axes = subplots(1, len(lengths), sharey=True, squeeze=False, **look)
    for length, ax in zip(lengths, axes[0], strict=True):
        quality_by_budget(ax, table[table.length == length], groups)
        ax.set_title(f"{length:,} tokens", fontsize=12, weight="normal")
    handles, names = axes[0, -1].get_legend_handles_labels()  # the longest texts exceed all budgets
    names = [f"budget {name}" for name in names]
    look = {"ncols": 5, "fontsize": 10, "title": label, "title_fontsize": 12}  # under all panels
    fig.legend(handles, names, loc="outside lower center", **look)
    return fig


def quality_by_budget(ax: Axes, part: pd.DataFrame, groups: Sequence[str]) -> None:
    """A line of dots for each of `groups`, one for each budget, with the interval over texts.

    `part` has columns `group`, `budget`, `ratio`, `ratio_low` and `ratio_high`, at one length.
    """
    budgets = sorted(part.budget[np.isfinite(part.budget)].unique())
    offsets = np.linspace(-0.22, 0.22, len(budgets)) if len(budgets) > 1 else [0]
    alone = part.groupby("group").budget.nunique() == 1  # on the line of its name
    for budget, offset, color in zip(budgets, offsets, BUDGET_COLORS, strict=False):
        own = part[(part.budget == budget) & part.group.isin(groups)]
        heights = [groups.index(x) + (0 if alone[x] else offset) for x in own.group]
        own = own.assign(height=heights)
        look = {"color": color, "markersize": 5, "elinewidth": 1.2, "label": f"{budget:.0f}"}
        points(ax, own, "ratio", "height", **look)
    ax.axvline(1, color=BLACK, linewidth=1, linestyle=":")
    plain_log(ax.xaxis)
    ax.set_yticks(range(len(groups)), map(display_name, groups), fontsize=10)
    ax.set_ylim(len(groups) - 0.5, -0.5)  # the best on top
    ax.grid(False, axis="y")


def highlights(groups: Sequence[str], shown: Iterable[str]) -> list[str]:
    """The groups that stand out in a figure: dense, window, sinks + window, the best, the worst.

    `groups` are sorted, best first; those that are not `shown` are left out.
    """
    ranked = [group for group in groups if group != BASELINE]
    chosen = [BASELINE, "recent_only", "streaming", *ranked[:1], *ranked[-1:]]
    return [group for group in dict.fromkeys(chosen) if group in set(shown)]


def quality_vs_cost(
    table: pd.DataFrame,
    fronts: Mapping[int, pd.DataFrame],
    column: str,
    labels: tuple[str, str],
    bright: Sequence[str],
) -> Figure:
    """`ratio`, of perplexities, against `column`: a panel for each length of `fronts`.

    A line joins a front, which may be empty; the groups `bright` have their own looks, all others
    are grey.
    """
    look = {"figsize": (WIDTH, 3.6 * len(fronts) + 1.2), "layout": "constrained"}
    fig, axes = subplots(len(fronts), 1, squeeze=False, **look)
    for (length, front), ax in zip(fronts.items(), axes[:, 0], strict=True):
        quality_by_cost(ax, table[table.length == length], column, front, bright)
        ax.set(xlabel=labels[0], ylabel=labels[1])
        ax.set_title(f"{length:,} tokens", fontsize=12, weight="normal")
    handles, names = axes[-1, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=10)
    fig.draw_without_rendering()  # places are known from here on
    for front, ax in zip(fronts.values(), axes[:, 0], strict=True):
        number_front(ax, front, column)
    return fig


def quality_by_cost(
    ax: Axes, part: pd.DataFrame, column: str, front: pd.DataFrame, bright: Sequence[str]
) -> None:
    """`ratio` against `column`, larger for more budget: `bright` groups over the grey others.

    These and the rows of the `front`, which a line joins, have bars for what is known of the
    spread.
    """
    bars = {"fmt": "none", "elinewidth": 1.2, "alpha": 0.5}
    rest = part[~part.group.isin(bright)]
    if len(rest):
        points(ax, rest[rest.method.isin(front.method)], column, "ratio", ecolor=GREY, **bars)
        look = {"color": GREY, "s": 22, "alpha": 0.6, "label": "all others"}
        ax.scatter(rest[column], rest.ratio, **look)
    for group in bright:
        own, style = part[part.group == group], method_style(group)
        points(ax, own, column, "ratio", ecolor=style.color, **bars)
        look = {"color": style.color, "marker": style.marker, "linestyle": ""}
        look["fillstyle"] = FILLS[LINES.get(group, "-")]
        for number, row in enumerate(own.sort_values("budget").itertuples()):
            size = 9 if not np.isfinite(row.budget) else 5.5 + 1.2 * np.log2(row.budget / 256)
            name = {"label": display_name(group)} if number == 0 else {}
            place = getattr(row, column), row.ratio
            ax.plot(*place, markersize=max(4, size), **look, **name)
    ax.plot(front[column], front.ratio, color=BLACK, linewidth=1, zorder=0, drawstyle="steps-post")
    names = [f"{number} {name}" for number, name in enumerate(map(display_name, front.method), 1)]
    ax.text(1.02, 1, "\n".join(names), transform=ax.transAxes, va="top", fontsize=10)
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)


def number_front(ax: Axes, front: pd.DataFrame, column: str, gap: float = 16) -> None:
    """Number the rows of the `front`; those less than `gap` pixels apart share a label."""
    places = ax.transData.transform(front[[column, "ratio"]].to_numpy(dtype=float))
    together: list[list[int]] = []
    for number, place in enumerate(places):
        near = together and np.abs(place - places[together[-1][0]]).max() < gap
        if near:
            together[-1].append(number)
        else:
            together.append([number])
    look = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 10, "weight": "bold"}
    for numbers in together:
        row = front.iloc[numbers[0]]
        ax.annotate(", ".join(str(x + 1) for x in numbers), (row[column], row.ratio), **look)


def heatmaps(
    table: pd.DataFrame, groups: Sequence[str], titles: Mapping[str, str], lowest: pd.DataFrame
) -> Figure:
    """A `heatmap` for each column of `titles`, as wide as its lengths need.

    In the first one the rows `lowest` (length, budget, group) are bold.
    """
    lengths = [table.dropna(subset=column).length.nunique() for column in titles]
    look = {"figsize": (WIDTH, 0.27 * len(groups) + 1.9), "layout": "constrained"}
    fig, axes = subplots(1, len(titles), sharey=True, squeeze=False, width_ratios=lengths, **look)
    for ax, (column, title) in zip(axes[0], titles.items(), strict=True):
        heatmap(ax, table, column, groups, title, lowest if ax is axes[0, 0] else lowest[:0])
    return fig


def heatmap(
    ax: Axes,
    table: pd.DataFrame,
    column: str,
    groups: Sequence[str],
    title: str,
    bold: pd.DataFrame,
) -> None:
    """`column` in numbers, and as a colour on a log scale about 1: groups by length and budget.

    Rows `bold` (length, budget, group) are so; gaps part the lengths.
    """
    kept = table[table.group.isin(groups)].dropna(subset=column)
    grid = kept.pivot(index="group", columns=["length", "budget"], values=column)
    grid = grid.reindex(groups).sort_index(axis=1)
    far = max(1.05, float(np.nanmax(np.abs(np.log(grid.to_numpy())))))
    norm = LogNorm(np.exp(-far), np.exp(far))
    look = {"annot_kws": {"fontsize": 9}, "linewidths": 0.5, "cmap": "RdBu_r", "cbar": False}
    sns.heatmap(grid, ax=ax, annot=True, fmt=".2f", norm=norm, **look)
    places = {
        (grid.columns.get_loc((x.length, x.budget)) + 0.5, groups.index(x.group) + 0.5)
        for x in bold.itertuples()
        if (x.length, x.budget) in grid and x.group in groups
    }
    for number in ax.texts:
        number.set_weight("bold" if number.get_position() in places else "normal")
    lengths = [length for length, _ in grid]
    starts = [place for place, length in enumerate(lengths) if length not in lengths[:place]]
    ax.vlines(starts[1:], 0, len(groups), color="white", linewidth=5)
    ax.grid(False)
    ax.set_xticklabels([f"{budget:.0f}" for _, budget in grid], rotation=90, fontsize=9)
    ax.set_yticklabels(map(display_name, groups), rotation=0, fontsize=10)
    for start, end in zip(starts, [*starts[1:], grid.shape[1]], strict=True):
        name = f"{lengths[start]:,}"
        ax.text((start + end) / 2, -0.25, name, ha="center", fontsize=10)
    ax.set(ylabel="", xlabel="budget")
    ax.set_title(title, fontsize=12, weight="normal", pad=20)
