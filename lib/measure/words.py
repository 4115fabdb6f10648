"""Numbers with what is known of their spread, as titles and readings say them."""

import pandas as pd


def estimate(row: pd.Series | tuple, column: str = "accuracy_%", unit: str = "%") -> str:
    """A number of a table's row with its interval, or its quartiles: `50% (35 to 67)`."""
    value, (low, high) = getattr(row, column), _ends(row, column)
    return f"{value:.3g}{unit} ({low:.3g} to {high:.3g})"


def told(row: pd.Series | tuple, column: str = "ratio") -> str:
    """A ratio likewise, `1.28x (1.18 to 1.41)`, and whether it is told apart from 1.

    A ratio that has no width is exact.
    """
    low, high = _ends(row, column)
    tie = low <= 1 <= high and low < high
    return estimate(row, column, "x") + (", not told apart" if tie else "")


def _ends(row: pd.Series | tuple, column: str) -> tuple[float, float]:
    kinds = (("low", "high"), ("q1", "q3"))
    ends = next(ends for ends in kinds if hasattr(row, f"{column}_{ends[0]}"))
    low, high = (getattr(row, f"{column}_{end}") for end in ends)
    return low, high
