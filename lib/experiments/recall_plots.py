"""The figures of recall, and what their titles may say: who recalls most, what perplexity hides."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lib.measure.rows import BASELINE
from lib.plots import (
    BLACK,
    GREY,
    WIDTH,
    band,
    display_name,
    method_style,
    plain_log,
    points,
    subplots,
)

NEAR = 1.25  # perplexity over dense attention's that passes for as good
LITTLE = 1 / 5  # of dense attention's recall


def estimate(row: pd.Series, column: str = "accuracy_%", unit: str = "%") -> str:
    """A number of a table with its interval: `50% (35 to 67)`."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return f"{row[column]:.3g}{unit} ({low:.3g} to {high:.3g})"


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that recall most, several if they are level; none if none recalls any."""
    most = table["accuracy_%"].max()
    return table[np.isclose(table["accuracy_%"], most) & (most > 0)]


def best_told(table: pd.DataFrame) -> str:
    """Who recalls most of the methods in `table`, a row each, and how much."""
    best = leaders(table)
    if best.empty:
        return "all methods none"
    if len(best) > 1:
        share = best["accuracy_%"].iloc[0]
        return f"{len(best)} of {len(table)} methods, level at the top, {share:.3g}%"
    return f"the best method, {display_name(best.group.iloc[0])}, {estimate(best.iloc[0])}"


def copying_title(methods: pd.DataFrame, dense: pd.Series) -> str:
    """Of the rows of `price_table` at one budget: `methods`, and dense attention's."""
    title = f"Of copies from beyond {dense.budget:,} tokens dense attention makes "
    title += f"{dense['accuracy_%']:.0f}%, "
    if dense["accuracy_%"] > 0:
        little = (methods["accuracy_%"] < LITTLE * dense["accuracy_%"]).sum()
        title += f"{little} of {len(methods)} methods less than a fifth of that, "
    return title + best_told(methods)


def hidden(methods: pd.DataFrame, dense: pd.Series) -> pd.DataFrame:
    """Of these rows those with a perplexity near dense attention's and little of its recall."""
    little = methods["accuracy_%"] < LITTLE * dense["accuracy_%"]
    return methods[(methods.ratio < NEAR) & little]


def price_title(methods: pd.DataFrame, dense: pd.Series) -> str:
    """What perplexity hides, of the same rows as in `copying_title`."""
    near = (methods.ratio < NEAR).sum()
    title = (
        f"With {dense.budget:,} tokens kept {near} of {len(methods)} methods stay within 25% of "
    )
    title += "dense attention's perplexity"
    if dense["accuracy_%"] == 0:
        return f"{title}, which itself copies nothing from beyond them"
    if near == 0:
        return title
    return f"{title}; {len(hidden(methods, dense))} of these {near} copy less than a fifth as much"


def agreement(methods: pd.DataFrame) -> str:
    """A sentence: does perplexity rank the methods as recall does?"""
    columns = ["ratio", "accuracy_%"]
    if methods[columns].nunique().min() < 2:
        return (
            "All methods are level in perplexity or in copying: the two have no rank correlation."
        )
    correlation = methods[columns].corr(method="spearman").iloc[0, 1]
    return (
        f"Over the {len(methods)} methods the rank correlation of perplexity and copying is "
        f"{correlation:+.2f} (-1: perplexity would tell it all)."
    )


def budget_colors(budgets: Sequence[int]) -> list[tuple]:
    """A colour for each budget, the largest darkest."""
    return list(colormaps["plasma"](np.linspace(0.75, 0.25, len(budgets))))


def copying_panels(copied: pd.DataFrame, budgets: Sequence[int]) -> Figure:
    """Copying by distance, a panel for each method: its budgets, and dense attention (dashed)."""
    groups = copied.group[copied.method != BASELINE].unique()
    across = min(5, len(groups))
    down = -(-len(groups) // across)
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
    """A panel for each of `budgets`, and for each length of the prompts."""
    lengths = found.length.unique()
    size = (WIDTH, len(budgets) * (0.3 * len(groups) + 0.6) + 0.6)
    shape = {"figsize": size, "layout": "constrained", "sharex": True, "sharey": True}
    fig, axes = subplots(len(budgets), len(lengths), squeeze=False, **shape)
    for (i, j), ax in np.ndenumerate(axes):
        at = found[(found.length == lengths[j]) & found.budget.isin([budgets[i], np.inf])]
        passkey_panel(ax, at, groups)
        ax.set_ylabel(f"budget {budgets[i]:,}" if j == 0 else "")
        if i == 0:
            title = f"{lengths[j]:,} tokens ({found.n_texts.max()} prompts)"
            ax.set_title(title, fontsize=12, weight="normal")
    fig.supxlabel("depth in the prompt (0 is its beginning)", fontsize=12)
    fig.colorbar(axes[0, 0].collections[0], ax=axes, shrink=0.6, label="passkeys retrieved (%)")
    return fig


def passkey_panel(ax: Axes, found: pd.DataFrame, groups: Sequence[str]) -> None:
    """Passkeys retrieved by method and depth, in numbers: `found` at one length and budget."""
    grid = found.pivot(index="group", columns="depth", values="accuracy_%").loc[list(groups)]
    look = {"vmin": 0, "vmax": 100, "cmap": "cividis", "annot": True, "fmt": ".0f", "cbar": False}
    sns.heatmap(grid.astype(float), ax=ax, annot_kws={"size": 9}, **look)
    ax.set(xlabel="", ylabel="", yticklabels=map(display_name, groups))
    ax.tick_params(axis="both", labelrotation=0, labelsize=10)


def cut_told(when: pd.DataFrame, name: str) -> str:
    """What a method retrieves by when it is cut: `when` has a row per method and `cut`."""
    rows = when[when.method == name].set_index("cut")
    words = {"chunk": "cut in chunks", "prompt": "once after the prompt"}
    words["question"] = "once after the question"
    told = [f"{estimate(rows.loc[cut])} {word}" for cut, word in words.items()]
    return f"{display_name(name)} retrieves {', '.join(told)}"


def tasks_told(found: pd.DataFrame) -> str:
    """Sentences: which tasks dense attention can't do, and who does best in the others."""
    said = []
    for (task, length), part in found.groupby(["task", "length"], sort=False):
        name = f"{task.capitalize()} in {length:,} tokens"
        whole, others = part[part.method == BASELINE].iloc[0], part[part.method != BASELINE]
        finds = f"{name}: dense attention finds {estimate(whole)} of {whole.n_values} values"
        if others.empty:
            said.append(f"{finds}, so that the others are not asked.")
        else:
            said.append(f"{finds}, {best_told(others.assign(group=others.method))}.")
    return " ".join(said)


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


def stream_title(far: pd.DataFrame, budget: int) -> str:
    """Recall of the facts from beyond the budget: `far` has a row per method."""
    whole, others = far[far.method == BASELINE].iloc[0], far[far.method != BASELINE]
    return (
        f"Of facts said more than {budget:,} tokens ago dense attention recalls {estimate(whole)}, "
        f"{best_told(others)}"
    )


def context_told(context: int, length: int) -> str:
    """A sentence: is a stream of `length` tokens longer than what the model was trained with?"""
    if length <= context:
        return f"The stream is within the {context:,} tokens that the model was trained with."
    return (
        f"The stream is longer than the {context:,} tokens that the model was trained with, behind "
        "which dense attention can't be relied on."
    )
