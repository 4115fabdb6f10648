"""One look for all figures, and for each method one colour and one marker."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .names import display_name, interval_of, method_of
from .paths import headless

# Okabe and Ito's colours, safe for the colour-blind; their yellow is too pale for lines
BLACK, ORANGE, SKY, GREEN = "#222222", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"
# and darker ones: norms are orange and purple, keys green, attention violet
BROWN, PLUM, VIOLET = "#8F5F00", "#8B3A75", "#5B3FA0"
WIDTH = 7.5  # inches; at 150 dpi a README shows it at about 3/4 of its size


def subplots(*args, **kwargs) -> tuple:
    """`plt.subplots`, shown only by a cell that ends with the figure, not half-done on the way."""
    fig, axes = plt.subplots(*args, **kwargs)
    plt.close(fig)
    return fig, axes


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn everywhere."""

    color: str
    marker: str


LOOKS = {
    "baseline": MethodStyle(BLACK, "o"),
    "static_cache": MethodStyle(GREY, "h"),
    "recent_only": MethodStyle(VERMILLION, "v"),
    "streaming_llm": MethodStyle(BLUE, "s"),
    "streaming_lazy": MethodStyle(SKY, "d"),
    "recompute": MethodStyle(GREEN, "D"),
    "l2_compress": MethodStyle(ORANGE, "^"),
    "adaptive_l2": MethodStyle(BROWN, "^"),
    "fix_size_l2": MethodStyle(PURPLE, "P"),
    "h2o_l2": MethodStyle(PLUM, "P"),
    "pyramid_h2o_l2": MethodStyle(PLUM, "p"),
    "pyramid_snapkv": MethodStyle(VIOLET, "p"),
    "random": MethodStyle(GREY, "X"),
    "keydiff": MethodStyle(GREEN, "<"),
    "lagkv": MethodStyle(GREEN, ">"),
    "h2o": MethodStyle(VIOLET, "o"),
    "tova": MethodStyle(VIOLET, "D"),
    "snapkv": MethodStyle(VIOLET, "*"),
}
# Looks for methods that are not in LOOKS, in the order in which they are first drawn
_FREE = cycle(
    MethodStyle(color, marker)
    for marker, color in product("hXd", (BROWN, BLUE, PURPLE, GREEN, ORANGE, PLUM))
)
_GIVEN: dict[str, MethodStyle] = {}
# The strategies of one method share its colour
LINES = {
    "static_cache": "--",
    "fix_l2_high": "--",
    "fix_l2_random": ":",
    "l2_ratio_0.5": "--",
    "l2_ratio_1.0": ":",
    "random": ":",
}


def method_style(name: str) -> MethodStyle:
    """Style of a method or of a row such as `streaming_512`; the next free one for a new method."""
    method = method_of(name)
    if method not in LOOKS and method not in _GIVEN:
        _GIVEN[method] = next(_FREE)
    return LOOKS.get(method) or _GIVEN[method]


def method_color(name: str) -> str:
    """Colour of a method or of a row named after it."""
    return method_style(name).color


def use_style() -> None:
    """Set the look of all figures; call it once at the top of a notebook."""
    sns.set_theme(style="whitegrid", context="notebook")
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 4.2),
            "figure.dpi": 100,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelsize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#555555",
            "axes.prop_cycle": plt.cycler(color=[style.color for style in LOOKS.values()]),
            "grid.color": "#E4E4E4",
            "grid.linewidth": 0.8,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "lines.markersize": 6,
            "image.cmap": "viridis",
        }
    )
    if shell := get_ipython():
        plt.switch_backend(plt.get_backend())  # loads it: only then a notebook draws figures
        formatters = shell.display_formatter.formatters
        draw = formatters["image/png"].for_type(Figure)
        if draw is not None and not isinstance(draw, Picture):
            formatters["image/png"].for_type(Figure, Picture(draw))
            formatters["text/html"].for_type(Figure, Picture(draw).html)


@dataclass(frozen=True)
class Picture:
    """A notebook's picture of a figure, with its caption (the label) as alternative text.

    For who looks on it is HTML, since neither JupyterLab nor what nbconvert exports reads the
    alternative text of a PNG. An executed copy has the PNG, which every viewer of notebooks shows,
    and the text beside it. Both at once would make notebooks twice as large.
    """

    draw: Callable[[Figure], str | tuple[str, dict]]  # base64, and the size of a fine one

    def __call__(self, fig: Figure) -> tuple[str, dict] | None:
        """The PNG, in base64, and its metadata."""
        text = fig.get_label()
        if text and not headless():
            return None
        data, size = self._drawn(fig)
        return data, size | ({"alt": text} if text else {})

    def html(self, fig: Figure) -> str | None:
        """The HTML."""
        text = fig.get_label()
        if not text or headless():
            return None
        data, size = self._drawn(fig)
        shape = "".join(f' {side}="{pixels}"' for side, pixels in size.items())
        return f'<img alt="{escape(text)}"{shape} src="data:image/png;base64,{data}">'

    def _drawn(self, fig: Figure) -> tuple[str, dict]:
        drawn = self.draw(fig)
        return drawn if isinstance(drawn, tuple) else (drawn, {})


def band(ax: Axes, table: pd.DataFrame, x: str, y: str, alpha: float = 0.15, **look) -> None:
    """A line of column `y` over column `x`, in a band of its `interval_of` where it has one.

    `look` is what `ax.plot` takes.
    """
    (line,) = ax.plot(table[x], table[y], **look)
    if spread := interval_of(table, y):
        low, high = (table[end] for end in spread)
        ax.fill_between(table[x], low, high, color=line.get_color(), alpha=alpha, linewidth=0)


def method_band(
    ax: Axes, part: pd.DataFrame, x: str, y: str, name: str, label: str | None = None
) -> None:
    """The `band` of one method or row, in its look and under its name or another `label`."""
    style = method_style(name)
    look = {"color": style.color, "marker": style.marker, "linestyle": LINES.get(name, "-")}
    band(ax, part, x, y, label=label or display_name(name), **look)


def points(ax: Axes, table: pd.DataFrame, x: str, y: str, **look) -> None:
    """Points of columns `x` and `y`, with bars for the `interval_of` each of them that has one.

    `look` is what `ax.errorbar` takes; `fmt="none"` draws the bars alone.
    """
    bars = {}
    for side, column in (("xerr", x), ("yerr", y)):
        if spread := interval_of(table, column):
            low, high = (table[end] for end in spread)
            # not below 0: where nothing differs, rounding does
            arms = (table[column] - low).clip(lower=0), (high - table[column]).clip(lower=0)
            bars[side] = np.stack(arms)
    ax.errorbar(table[x], table[y], **{"fmt": "o", **bars, **look})


def mark(ax: Axes, x: float, text: str) -> None:
    """A dotted vertical line at `x` with a word at its top."""
    ax.axvline(x, color="#777777", linewidth=1, linestyle=":")
    place = ax.get_xaxis_transform()
    ax.text(x, 0.99, f" {text}", transform=place, va="top", fontsize=10, color="#555555")


def mark_cells(ax: Axes, cells: np.ndarray) -> None:
    """A dot in the upper right corner of the heat map's cells that are True in (rows, columns)."""
    rows, columns = np.nonzero(cells)
    ax.scatter(columns + 0.86, rows + 0.18, s=14, color="white", edgecolor=BLACK, lw=0.8)


def plain_log(axis: Axis) -> None:
    """A log axis with labels such as 0.5, 20 and 1,000 at 1, 2 and 5 of every decade.

    There are more within a decade, and over four or more only whole ones.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    few = (1, 2, 5) if high < 1e4 * low else (1,)
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 10 * low else few))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def thousands(axis: Axis) -> None:
    """Labels such as 20,000."""
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def figure_title(fig: Figure, text: str) -> None:
    """A title over all panels, in the place and weight of a single panel's; long ones wrap."""
    fig.suptitle(textwrap.fill(text, 74), x=0.02, ha="left", fontsize=13, weight="bold")


def label_line_ends(ax: Axes, gap: float = 0.06) -> None:
    """Write each line's label at its right end, instead of a legend; `gap` is in axes heights.

    Call it when limits and scales are final. Room to the right is made by `bbox_inches="tight"`.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = []
    for line in ax.get_lines():
        label = str(line.get_label())
        if not label.startswith("_") and len(line.get_xdata()):
            end = to_axes.transform((line.get_xdata()[-1], line.get_ydata()[-1]))
            ends.append((float(end[1]), label, line.get_color()))
    lowest = float("-inf")
    for rank, (height, label, color) in enumerate(sorted(ends), start=1):
        lowest = max(height, lowest + gap)
        below_top = 1 - gap * (len(ends) - rank)
        place = {"x": 1.02, "y": min(lowest, below_top), "va": "center"}
        ax.text(s=label, color=color, transform=ax.transAxes, **place)
