"""What titles and readings may say of the comparison: who leads, what it costs, the fronts."""

from collections.abc import Mapping

import pandas as pd

from lib.measure.rows import BASELINE
from lib.names import display_name


def lead_in_words(first: str, second: str, ahead: tuple[float, float, float]) -> str:
    """The best group and the next, whose perplexity over it is `ahead`: no crown for a tie."""
    ratio, low, high = (100 * (x - 1) for x in ahead)
    first, second = display_name(first), display_name(second)
    gap = f"{ratio:+.1f}% ({low:+.1f} to {high:+.1f})"
    if low > 0:
        return f"{first} has the lowest perplexity, the next, {second}, {gap}"
    return f"The two lowest in perplexity, {first} and {second}, are not told apart: {gap}"


def leading(timed: pd.DataFrame) -> pd.Series:
    """The row of lowest perplexity at the longest length, but for dense attention."""
    far = timed[(timed.length == timed.length.max()) & (timed.group != BASELINE)]
    return far.loc[far.ppl.idxmin()]


def level_against_base(level: pd.DataFrame, base: str, column: str, word: str) -> str:
    """Whose perplexity is lowest, how many are not told apart from it, and the span of their cost.

    `against_base` where it is one row; `column` is the cost's, `word` what it is called.
    """
    if len(level) == 1:
        return against_base(level.iloc[0], base, {column: word})
    cost, first = 1 + level[f"{column}_change_%"] / 100, level.loc[level.ppl.idxmin()]
    return (
        f"{first.length:,} tokens, {first.budget:.0f} kept: {display_name(first.group)} lowest, "
        f"{len(level) - 1} not told apart from it; {word} {cost.min():.2f} to {cost.max():.2f} "
        f"of {base}"
    )


def against_base(row: pd.Series, base: str, costs: Mapping[str, str]) -> str:
    """What a row's perplexity and its `costs`, columns by their words, are against the base."""
    gap, low, high = (row[f"ppl_change_{end}"] for end in ("%", "low", "high"))
    parts = [f"perplexity {gap:+.1f}% ({low:+.1f} to {high:+.1f})"]
    for column, word in costs.items():
        ends = [row.get(f"{column}_change_%_{end}") for end in ("q1", "q3")]
        spread = "" if None in ends else " [{:+.0f} to {:+.0f}]".format(*ends)
        parts.append(f"{word} {row[f'{column}_change_%']:+.0f}%{spread}")
    at = f"{display_name(row.method)} at {row.length:,} tokens against {base}"
    return f"{at}: {', '.join(parts)}"


def beaten_in_words(beaten: Mapping[int, pd.DataFrame]) -> str:
    """The rows that are `beaten` at each length, as a list in words."""
    names = {n: ", ".join(map(display_name, rows.method)) for n, rows in beaten.items()}
    return "; ".join(f"at {n:,} tokens {rows or 'no row'}" for n, rows in names.items())


def on_all(fronts: Mapping[int, pd.DataFrame]) -> str:
    """The groups that are on every one of `fronts`, as a list in words."""
    groups = [set(front.group) for front in fronts.values()]
    shared = sorted(set.intersection(*groups))
    return "; ".join(map(display_name, shared)) or "no method on all"


def front_in_words(fronts: Mapping[int, pd.DataFrame]) -> str:
    """The rows on the front of each length, from the least cost to the lowest perplexity."""
    names = {n: ", ".join(map(display_name, front.method)) for n, front in fronts.items()}
    return "; ".join(f"at {n:,} tokens {rows}" for n, rows in names.items())
