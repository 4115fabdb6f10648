"""The figures of the mistakes: what each costs, by chunk, and along a text."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILLION,
    WIDTH,
    band,
    label_line_ends,
    mark,
    plain_log,
    points,
    subplots,
    thousands,
)

LOOKS = {
    "exact": (BLUE, "s"),
    "dense within the chunk": (ORANGE, "^"),
    "cut before attention": (VERMILLION, "v"),
}


def ratio(value: float) -> str:
    """A ratio as a word, three digits or all whole ones: 0.776x, 1.86x, 14.2x, 1,860x."""
    return f"{value:.3g}x" if value < 999.5 else f"{value:,.0f}x"


def ratios(ax: Axes, table: pd.DataFrame) -> None:
    """The ratio of each mistake of a `mistake_table` with its interval, the highest on top."""
    ranked = table.sort_values("ratio", ignore_index=True).reset_index(names="rank")
    points(ax, ranked, "ratio", "rank", color=VERMILLION, capsize=3, elinewidth=1.5)
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
        look = {"color": color, "marker": marker, "label": way.replace(" the", "\nthe")}
        band(ax, part, "chunk_size", "ratio", alpha=0.2, **look)
    sizes = sorted(chunks.chunk_size.unique())
    ax.axhline(dense, color=BLACK, linestyle=":", linewidth=1.2)
    ax.text(sizes[0], dense, "dense attention, no budget", va="bottom", fontsize=10)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    plain_log(ax.yaxis)
    ax.set_ylim(bottom=0.8 * min(dense, chunks.ratio.min()))
    label_line_ends(ax, gap=0.16)


def not_turned(turning: pd.DataFrame, marks: Mapping[str, int]) -> Figure:
    """Perplexity of keys not turned over turned ones, by `position`; `marks` names positions."""
    fig, ax = subplots(figsize=(WIDTH, 3.8), layout="constrained")
    look = {"color": VERMILLION, "marker": "v", "label": "not turned"}
    band(ax, turning, "position", "ratio", **look)
    ax.axhline(1, color=BLACK, linewidth=1.2)
    for word, position in marks.items():
        mark(ax, position, word)
    ax.set_xscale("log", base=2)
    thousands(ax.xaxis)
    ax.set(xlabel="position in the text (tokens)", ylabel="perplexity, not turned / turned")
    return fig
