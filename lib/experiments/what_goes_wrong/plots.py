"""The figures of the mistakes: what each costs, and how perplexity depends on the chunk."""

import pandas as pd
from matplotlib.axes import Axes

from lib.plots import BLACK, BLUE, ORANGE, VERMILLION, label_line_ends, plain_log

LOOKS = {
    "exact": (BLUE, "s"),
    "dense within the chunk": (ORANGE, "^"),
    "cut before attention": (VERMILLION, "v"),
}


def ratio(value: float) -> str:
    """A ratio as a word: 0.78x, 1.86x, 14x."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:,.0f}x"


def ratios(ax: Axes, table: pd.DataFrame) -> None:
    """The ratio of each mistake of a `mistake_table` with its interval, the highest on top."""
    ranked = table.sort_values("ratio", ignore_index=True)
    # not below 0: where nothing differs, rounding does
    spread = [
        (ranked.ratio - ranked.ratio_low).clip(lower=0),
        (ranked.ratio_high - ranked.ratio).clip(lower=0),
    ]
    look = {"fmt": "o", "color": VERMILLION, "capsize": 3, "elinewidth": 1.5}
    ax.errorbar(ranked.ratio, ranked.index, xerr=spread, **look)
    for height, row in ranked.iterrows():
        place = max(row.ratio_high, row.ratio, 1), height  # right of the line at 1, too
        ax.annotate(ratio(row.ratio), place, (8, 0), textcoords="offset points", va="center")
    ax.axvline(1, color=BLACK, linewidth=1.2, zorder=0)
    plain_log(ax.xaxis)
    ax.set_yticks(ranked.index, ranked.mistake)
    ax.set_ylim(-0.5, len(ranked) - 0.3)
    ax.grid(False, axis="y")
    ax.margins(x=0.16)


def ratio_by_chunk(ax: Axes, chunks: pd.DataFrame, dense: float) -> None:
    """A line with its band for each way of a `by_chunk` table, and dense attention's ratio."""
    for way, part in chunks.groupby("way", sort=False):
        color, marker = LOOKS[way]
        label = way.replace(" the", "\nthe")
        ax.plot(part.chunk_size, part.ratio, color=color, marker=marker, label=label)
        band = {"color": color, "alpha": 0.2, "linewidth": 0}
        ax.fill_between(part.chunk_size, part.ratio_low, part.ratio_high, **band)
    sizes = sorted(chunks.chunk_size.unique())
    ax.axhline(dense, color=BLACK, linestyle=":", linewidth=1.2)
    ax.text(sizes[0], dense, "dense attention, no budget", va="bottom", fontsize=10)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    plain_log(ax.yaxis)
    ax.set_ylim(bottom=0.8 * min(dense, chunks.ratio.min()))
    label_line_ends(ax, gap=0.16)
