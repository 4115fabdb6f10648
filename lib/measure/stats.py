"""Spread: confidence intervals over texts, quartiles over repeats, rolling means over positions."""

import math
from collections.abc import Container, Iterable, Mapping
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm, t

from lib.require import require


def mean_ci(values) -> tuple[float, float, float]:
    """Mean of `values` (n,) and its 95% bootstrap interval over them: mean, low, high.

    The percentiles of resampled means are taken further out the fewer values there are, as far as
    Student's t goes beyond the normal distribution (Hesterberg 2015, arXiv:1411.5279): plain ones
    cover 85% where they say 95%, at n = 6. Fewer than six values have too few resamples to reach
    95%: there the interval is Student's own, and for a single value nan. Always the same resamples.
    """
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    far, tail = _tails(n)
    if n < 6:
        half = far * float(values.std(ddof=1)) / np.sqrt(n)
        return mean, mean - half, mean + half
    low, high = np.quantile(values[_resamples(n)].mean(axis=1), [tail, 1 - tail])
    return mean, min(mean, float(low)), max(mean, float(high))  # for equal values, to the last bit


@cache
def _tails(n: int) -> tuple[float, float]:
    """Student's 97.5% for `n` values, in standard errors, and the tail of resampled means there."""
    far = float(t.ppf(0.975, n - 1))
    return far, float(norm.cdf(-far * np.sqrt(n / (n - 1))))


@cache
def _resamples(n: int) -> np.ndarray:
    """Which of `n` values each of 10,000 resamples draws, (10000, n)."""
    return np.random.default_rng(0).integers(n, size=(10_000, n))


def share_ci(hits: float, n: int) -> tuple[float, float, float]:
    """Share `hits / n` of n independent tries and its 95% interval (Wilson 1927): share, low, high.

    It has a width where all tries agree, too. A try may be a share itself, and `hits` their sum: it
    varies no more than one that hits or misses, so that the interval is rather too wide. Raises
    ValueError for `hits` outside 0 to n.
    """
    require(n > 0 and 0 <= hits <= n, "hits", hits, f"0 to n = {n}, which is above 0")
    share, z2 = hits / n, float(norm.ppf(0.975)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def with_interval(name: str, estimate: Iterable[float], unit: str = "") -> dict[str, float]:
    """A number and its interval as columns: `name` (and its unit), `name_low`, `name_high`."""
    return dict(zip((f"{name}{unit}", f"{name}_low", f"{name}_high"), estimate, strict=True))


def place_table(columns: dict[str, np.ndarray], axes: tuple[str, ...]) -> pd.DataFrame:
    """A row for each place: `columns` are arrays (N, *places), whose axes are named by `axes`.

    Columns `x`, `x_low`, `x_high` for each: mean and 95% interval over the N texts, and `n_texts`.
    """
    first = next(iter(columns.values()))
    rows = []
    for place in np.ndindex(first.shape[1:]):
        row = dict(zip(axes, place, strict=True))
        for name, values in columns.items():
            row |= with_interval(name, mean_ci(values[(slice(None), *place)]))
        rows.append(row | {"n_texts": len(first)})
    return pd.DataFrame(rows)


def ppl_ci(nll: torch.Tensor) -> tuple[float, float, float]:
    """Perplexity over all tokens of `nll` (texts, tokens), and its interval over texts.

    No perplexity is below 1, where Student's t of few texts would go: there the interval is cut.
    """
    return tuple(float(np.exp(np.maximum(x, 0))) for x in mean_ci(nll.double().mean(-1).numpy()))


def ppl_ratio_ci(nll: torch.Tensor, base: torch.Tensor) -> tuple[float, float, float]:
    """Perplexity of `nll` over that of `base`, paired by text: ratio, low, high."""
    return tuple(float(np.exp(x)) for x in mean_ci((nll - base).double().mean(-1).numpy()))


def summarise(runs: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Median and quartiles over repeats: `x`, `x_q1`, `x_q3` for each column, and `n`."""
    groups = runs.groupby(by, sort=False)
    parts = {"n": groups.size()}
    for column in columns:
        parts[column] = groups[column].median()
        parts[f"{column}_q1"] = groups[column].quantile(0.25)
        parts[f"{column}_q3"] = groups[column].quantile(0.75)
    return pd.DataFrame(parts).reset_index()


def over_medians(
    table: pd.DataFrame, column: str, base: pd.DataFrame, on: list[str]
) -> pd.DataFrame:
    """`column` of a `summarise`d table over that of the rows of `base` which agree in `on`.

    `ratio` is that of the medians, so that it is what the columns beside it give; `ratio_q1` and
    `ratio_q3` are a quartile over the other's opposite one: they exclude 1 just where the quartiles
    do not overlap. A row over itself is 1 throughout.
    """
    columns = [column, f"{column}_q1", f"{column}_q3"]
    own = table[columns].to_numpy().T
    other = table[on].merge(base[[*on, *columns]], on=on, how="left")[columns].to_numpy().T
    ends = np.where((own == other).all(axis=0), 1, [own[1] / other[2], own[2] / other[1]])
    ratios = {"ratio": own[0] / other[0], "ratio_q1": ends[0], "ratio_q3": ends[1]}
    return pd.DataFrame(ratios, index=table.index)


def speedup(
    table: pd.DataFrame, column: str, base: pd.DataFrame, on: list[str], name: str = "speedup"
) -> pd.DataFrame:
    """How many times less `column` (a time) is than that of `base`: 1 over `over_medians`."""
    slower = over_medians(table, column, base, on)
    ends = {name: "ratio", f"{name}_q1": "ratio_q3", f"{name}_q3": "ratio_q1"}
    return pd.DataFrame({end: 1 / slower[ratio] for end, ratio in ends.items()})


def stretches(nll: torch.Tensor, count: int = 16) -> torch.Tensor:
    """One text's `nll` (tokens,) as `count` stretches (count, tokens // count), without the rest.

    Intervals over them stand for those over texts. Fewer than two tokens each: the text as it is,
    (1, tokens), which has no interval.
    """
    length = len(nll) // count
    return nll[: length * count].reshape(count, length) if length > 1 else nll[None]


def by_position(
    nll: torch.Tensor, edges: np.ndarray, base: torch.Tensor | None = None
) -> pd.DataFrame:
    """Perplexity between consecutive `edges` (token positions) of `nll` (texts, tokens).

    Columns `position` (geometric middle of `begin` to `end`), `ppl`, with a `base` (texts, tokens)
    `ratio` to its perplexity, paired, each with `_low` and `_high` (95% over texts, or over 16
    stretches of a single text), and `n_texts`.
    """
    rows = []
    for begin, end in pairwise(np.asarray(edges).tolist()):
        row = {"position": middle(begin, end), "begin": begin, "end": end}
        parts = [x[:, begin:end] for x in (nll, base) if x is not None]
        parts = [stretches(x[0]) if len(x) == 1 else x for x in parts]
        row |= with_interval("ppl", ppl_ci(parts[0]))
        if base is not None:
            row |= with_interval("ratio", ppl_ratio_ci(*parts))
        rows.append(row | {"n_texts": len(nll)})
    return pd.DataFrame(rows)


def middle(begin: int, end: int) -> float:
    """The geometric middle of a span of tokens: where it stands on a log axis."""
    return float(np.sqrt(max(begin, 1) * end))


def nll_by_position(nll: torch.Tensor, edges: np.ndarray) -> pd.DataFrame:
    """`by_position` in nats: columns `nll`, `nll_low` and `nll_high` in place of the perplexity."""
    columns = {f"ppl{end}": f"nll{end}" for end in ("", "_low", "_high")}
    table = by_position(nll, edges).rename(columns=columns)
    return table.assign(**{name: np.log(table[name]) for name in columns.values()})


def for_json(values: Iterable[float]) -> list[float | None]:
    """Five significant digits, and None for what is no number, as in all of JSON."""
    return [float(f"{x:.5g}") if math.isfinite(x) else None for x in map(float, values)]


def log_edges(first: int, last: int, per_octave: int = 2) -> np.ndarray:
    """Whole-number edges from `first` to `last`, evenly spaced on a log axis."""
    count = max(2, int(np.ceil(np.log2(last / first) * per_octave)) + 1)
    return np.unique(np.geomspace(first, last, count).round().astype(int))


def ratio_table(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], sampled: Container[str] = ()
) -> pd.DataFrame:
    """Perplexity of each NLL and its ratio to another on the same tokens, 95% intervals over texts.

    `pairs` gives (nll, other nll), each (texts, tokens), by the name of the row. Rows `sampled`
    are known at some of the tokens: their ratio stands, a perplexity beside the others' does not.
    """
    rows = []
    for name, (nll, other) in pairs.items():
        ppl = (np.nan,) * 3 if name in sampled else ppl_ci(nll)
        row = {"method": name} | with_interval("ppl", ppl)
        row |= with_interval("ratio", ppl_ratio_ci(nll, other))
        rows.append(row | {"n_texts": len(nll), "n_tokens": nll.numel()})
    return pd.DataFrame(rows)


def verdict(low: float, high: float, side: int, base: float, near: float) -> str:
    """Whether an interval bears out a claim: "holds", "does not hold" or "not told apart".

    `side` 1 or -1 claims more or less than `base`: all of the interval lies there, or on the other
    side. 0 claims as much: all of it is within `near` of `base`, or all outside.
    """
    if side == 0:
        holds = base - near <= low and high <= base + near
        fails = low > base + near or high < base - near
    else:
        holds, fails = (low > base, high < base)[::side]
    return "holds" if holds else "does not hold" if fails else "not told apart"


def size_beside(ours: tuple[float, float], theirs: tuple[float, float], base: float) -> str:
    """An effect's interval (low, high) beside another's: which is farther from `base`, no effect.

    "as theirs" where the two overlap, else "larger here" or "smaller here".
    """
    if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return "as theirs"
    near, far = min(abs(x - base) for x in ours), max(abs(x - base) for x in theirs)
    return "larger here" if near > far else "smaller here"
