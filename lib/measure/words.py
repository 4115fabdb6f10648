"""Numbers with what is known of their spread, as titles and readings say them."""

from collections.abc import Iterable

import pandas as pd


def spread(estimate: Iterable[float], unit: str = "", quartiles: bool = False) -> str:
    """A number (value, low, high) with its interval: `50% (35 to 67)`; quartiles in brackets."""
    value, low, high = estimate
    begin, end = "[]" if quartiles else "()"
    return f"{value:.3g}{unit} {begin}{low:.3g} to {high:.3g}{end}"


def apart(estimate: Iterable[float], quartiles: bool = False) -> str:
    """A ratio likewise, `1.28x (1.18 to 1.41)`, and whether it is told apart from 1.

    A ratio that has no width is exact.
    """
    ratio, low, high = estimate
    tie = low <= 1 <= high and low < high
    return spread((ratio, low, high), "x", quartiles) + (", not told apart" if tie else "")


def difference(estimate: Iterable[float], more: str, less: str, unit: str = "") -> str | None:
    """A difference in words that say its side, `loses 1.2 nats (1 to 2)`; None: not told apart.

    `more` and `less` are the words in front of one above and one below zero.
    """
    value, low, high = estimate
    if not (low > 0 or high < 0):
        return None
    side, size = (more, (value, low, high)) if low > 0 else (less, (-value, -high, -low))
    return f"{side} {spread(size, unit)}"


def estimate(row: pd.Series | tuple, column: str = "accuracy_%", unit: str = "%") -> str:
    """`spread` of a number of a table's row and its interval or quartiles beside it."""
    numbers, quartiles = with_ends(row, column)
    return spread(numbers, unit, quartiles)


def told(row: pd.Series | tuple, column: str = "ratio") -> str:
    """`apart` of a ratio of a table's row and its interval or quartiles beside it."""
    return apart(*with_ends(row, column))


def with_ends(row: pd.Series | tuple, column: str) -> tuple[list[float], bool]:
    """The number and its two ends, and whether these are quartiles."""
    stems, kinds = (column, column.removesuffix("_%")), (("low", "high"), ("q1", "q3"))
    pairs = [[f"{stem}_{end}" for end in ends] for stem in stems for ends in kinds]
    ends = next(ends for ends in pairs if hasattr(row, ends[0]))
    return [getattr(row, name) for name in (column, *ends)], ends[0].endswith("_q1")
