"""The figure of an endless conversation, and what its title and its reading may say."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.plots import mark, method_style, plain_log

STYLES = {"dense": "baseline", "window": "recent_only", "sinks + window": "streaming_llm"}
SMOOTH = 5  # turns: questions differ in how hard they are
UNITS = {"nll": " nats a token", "repeated": " points", "said_before": " points"}


def panels(axes: np.ndarray, runs: pd.DataFrame, full: int, base: str = "dense") -> None:
    """Six panels over turns; dots are turns, lines their mean over five; `full`: first turn cut."""
    runs = runs.assign(difference=runs.nll - by_turn(runs, base).nll.reindex(runs.turn).to_numpy())
    columns = ("nll", "difference", "repeated_%", "said_before_%", "cache_length", "ms_per_token")
    labels = (
        "NLL of the reference\nanswer (nats a token)",
        f"the same minus\nthat of {base}",
        "4-grams that repeat\nin the answer (%)",
        "answers said before,\nword for word (%)",
        "tokens kept after\nthe answer",
        "ms a token",
    )
    for ax, column, label in zip(axes.flat, columns, labels, strict=True):
        smooth = column not in ("cache_length", "ms_per_token")
        for method, part in runs.groupby("method", sort=False):
            curve(ax, part.turn, part[column], method, smooth)
        ax.set_ylabel(label)
        if runs.turn.min() < full <= runs.turn.max():
            mark(ax, full, "caches full" if ax is axes.flat[0] else "")
    plain_log(axes.flat[4].yaxis)
    axes.flat[5].set(ylim=(0, None))
    for ax in axes[-1]:
        ax.set_xlabel("turn")


def curve(ax: Axes, turn: pd.Series, values: pd.Series, method: str, smooth: bool) -> None:
    """One method's line, through its turns or, where there are many, through their rolling mean."""
    style = method_style(STYLES[method])
    smooth = smooth and len(turn) > 3 * SMOOTH
    line = values.rolling(SMOOTH, center=True, min_periods=1).mean() if smooth else values
    if smooth:
        ax.plot(turn, values, style.marker, color=style.color, alpha=0.3, ms=3)
    ax.plot(turn, line, color=style.color, label=method)


def by_turn(runs: pd.DataFrame, method: str) -> pd.DataFrame:
    return runs[runs.method == method].set_index("turn")


def verdict(row: pd.Series, name: str, more: str, less: str) -> str:
    """A difference to dense, if it is told apart from none: `loses 1.2 nats a token (0.9 to 1.5)`.

    `more` and `less` are the verbs for one above and one below zero.
    """
    value, low, high = (row[f"{name}_difference{end}"] for end in ("", "_low", "_high"))
    if not (low > 0 or high < 0):
        return "is not told apart from dense"
    verb, size = (more, (value, low, high)) if low > 0 else (less, (-value, -high, -low))
    return f"{verb} {size[0]:.3g}{UNITS[name]} ({size[1]:.3g} to {size[2]:.3g})"


def title(table: pd.DataFrame) -> str:
    """The finding: what window and sinks + window lose to dense on the reference answers."""
    told = [f"{row.method} {verdict(row, 'nll', 'loses', 'gains')}" for row in others(table)]
    return f"Once the caches are full: {', '.join(told)}"


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """`summary` as it is read: a value and its interval in one cell, none for dense to itself."""
    shown = table[["method"]].copy()
    for column in ("nll", "nll_difference", "repeated_%", "said_before_%"):
        ends = table[[column, f"{column}_low", f"{column}_high"]].to_numpy()
        shown[column] = [f"{x:.3g} ({low:.3g} to {high:.3g})" for x, low, high in ends]
    shown.loc[shown.method == "dense", "nll_difference"] = "–"
    return shown.join(table[["kept", "seen", "ms_per_token"]].round(1))


def shown_in_words(table: pd.DataFrame, answers: pd.DataFrame) -> str:
    """Whether the window's collapse can be read, and its last answer beside that of the others."""
    window, last = table.set_index("method").loc["window"], answers.iloc[-1]
    said = "; ".join(f'{row.method} "{last[row.method]}"' for _, row in table.iterrows())
    able = "can" if window["said_before_difference_low"] > 0 else "can't"
    return (
        f"The window's collapse {able} be read in its answers: to the last of those above, "
        f'"{last.question}", is answered: {said}.'
    )


def others(table: pd.DataFrame) -> list[pd.Series]:
    """The rows but dense's."""
    return [row for _, row in table.iterrows() if row.method != "dense"]
