"""The figure of an endless conversation, and what its title and its reading may say."""

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib.measure.rows import BASELINE
from lib.measure.words import difference, with_ends
from lib.names import display_name
from lib.plots import mark, method_style, plain_log

WINDOW = "recent_only"
SMOOTH = 5  # turns: questions differ in how hard they are


def panels(axes: np.ndarray, runs: pd.DataFrame, full: int) -> None:
    """Six panels over turns; dots are turns, lines their mean over five; `full`: first turn cut."""
    runs = runs.assign(
        difference=runs.nll - by_turn(runs, BASELINE).nll.reindex(runs.turn).to_numpy()
    )
    columns = ("nll", "difference", "repeated_%", "said_before_%", "cache_length", "ms_per_token")
    labels = (
        "NLL of the reference\nanswer (nats a token)",
        f"the same minus\nthat of {display_name(BASELINE)}",
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
    style = method_style(method)
    smooth = smooth and len(turn) > 3 * SMOOTH
    line = values.rolling(SMOOTH, center=True, min_periods=1).mean() if smooth else values
    if smooth:
        ax.plot(turn, values, style.marker, color=style.color, alpha=0.3, ms=3)
    ax.plot(turn, line, color=style.color, label=display_name(method))


def by_turn(runs: pd.DataFrame, method: str) -> pd.DataFrame:
    """The rows of one method, by their turn."""
    return runs[runs.method == method].set_index("turn")


def against_dense(estimate: Sequence[float], unit: str, more: str, less: str) -> str:
    """A difference to dense (mean, low, high) in words: `loses 1.2 nats (1 to 2)`."""
    return difference(estimate, more, less, f" {unit}") or "is not told apart from dense"


def title(table: pd.DataFrame) -> str:
    """The finding: what window and sinks + window lose to dense on the reference answers.

    And how often the window says again what it has said, which the 4-grams of one answer hide.
    """
    told = [
        f"{display_name(row.method)} "
        + against_dense(with_ends(row, "nll_difference")[0], "nats a token", "loses", "gains")
        for _, row in table.iterrows()
        if row.method != BASELINE
    ]
    again = table.set_index("method")["said_before_%"][WINDOW]
    said = f"{again:.3g}% of the window's answers are earlier ones"
    return f"Once the caches are full: {', '.join(told)}; {said}"


def worst_turn(runs: pd.DataFrame) -> int:
    """The turn at which the window loses most to dense on the reference answer."""
    nll = runs.pivot(index="turn", columns="method", values="nll")
    return int((nll[WINDOW] - nll[BASELINE]).idxmax())


def shown_in_words(table: pd.DataFrame, answers: pd.DataFrame, turn: int) -> str:
    """Whether the window's collapse can be read, and its answer at `turn` beside the others.

    It can if the window says again, word for word, what it has said, more than dense does.
    """
    by, worst = table.set_index("method"), answers[answers.turn == turn].iloc[0]
    said = "; ".join(f'{name} "{shorten(worst[name], 80)}"' for name in map(display_name, by.index))
    again = by["said_before_%_low"][WINDOW] > by["said_before_%_high"][BASELINE]
    able = "can" if again else "can't"
    return (
        f"The window's collapse {able} be read in its answers. Where it loses most, at turn "
        f'{turn}, "{worst.question}" is answered: {said}.'
    )
