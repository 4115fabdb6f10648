"""The figures of key norms: every head in a map, attention by norm, what dropping loses, sinks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes

from lib.measure.stats import place_table
from lib.plots import BLACK, GREY, PURPLE, band, mark_cells, plain_log, points

ORDERS = {"keep_low": (PURPLE, "-"), "keep_high": (PURPLE, "--")}
ORDERS |= {"random": (GREY, ":"), "ideal": (BLACK, "-")}


def layer_colors(layers: int) -> np.ndarray:
    """A colour for each layer, (layers, 4), low layers dark."""
    return colormaps["viridis"](np.linspace(0, 0.92, layers))


def map_height(layers: int) -> float:
    """Inches of a figure with a head map: every layer's row holds a number."""
    return max(3.8, 0.2 * layers + 1.2)


def _some_labels(layers: int, most: int = 9) -> list[str]:
    """A legend's names of layers: of more than `most` every second, third ... one."""
    step = -(-layers // most)
    return [f"layer {layer}" if layer % step == 0 else "_" for layer in range(layers)]


def head_map(ax: Axes, table: pd.DataFrame, column: str, form: str, label: str, title: str) -> None:
    """`column` by `layer` and `head`, as numbers (up to 8 heads) and as colours about 0.

    A dot marks where its interval, `<column>_low` to `<column>_high`, includes 0.
    """
    by_place = table.set_index(["layer", "head"])
    grid = by_place[column].unstack("head")
    unsure = (by_place[f"{column}_low"] < 0) & (by_place[f"{column}_high"] > 0)
    digits = int(form[1])
    most = max(10.0**-digits, np.abs(grid.to_numpy()).max())
    look = {"vmin": -most, "vmax": most, "cmap": "PuOr_r", "cbar_kws": {"label": label}}
    shown = grid.round(digits) + 0.0  # no -0
    sns.heatmap(shown, ax=ax, annot=grid.shape[1] <= 8, fmt=form, annot_kws={"size": 9}, **look)
    mark_cells(ax, unsure.unstack("head").to_numpy())
    ax.set_xlabel("head (dot: 95% includes 0)")
    ax.set_title(title, fontsize=11, weight="normal")


def attention_by_norm(ax: Axes, parts: np.ndarray) -> None:
    """Attention received by equal parts of the keys in the order of norms, (N, L, parts), by layer.

    Relative to the mean of all keys; bands are 95% intervals over the N texts. The lines of more
    than nine layers have none, but their mean has, on a log axis.
    """
    layers, count = parts.shape[1:]
    table = place_table({"received": parts}, ("layer", "part"))
    percentile = (np.arange(count) + 0.5) * 100 / count
    many = layers > 9  # bands would hide each other
    for layer, (color, label) in enumerate(
        zip(layer_colors(layers), _some_labels(layers), strict=True)
    ):
        part = table[table.layer == layer].assign(percentile=percentile)
        if many:
            ax.plot(percentile, part.received, color=color, lw=1, label=label)
        else:
            band(ax, part, "percentile", "received", color=color, marker="o", ms=4, label=label)
    if many:
        mean = place_table({"received": parts.mean(1)}, ("part",)).assign(percentile=percentile)
        band(ax, mean, "percentile", "received", color=BLACK, lw=3, label="mean of layers")
        plain_log(ax.yaxis)
    ax.axhline(1, color=BLACK, lw=1, ls=":")
    ax.set(xlabel="key norm (percentile in its head)", **({} if many else {"ylim": 0}))
    ax.set_ylabel("attention relative to the mean")
    ax.legend(fontsize=9)


def attention_lost_panel(ax: Axes, curves: Mapping[str, np.ndarray]) -> None:
    """Attention lost against keys dropped, (N, L, H, C) by order: heads' mean, band over texts."""
    C = curves["ideal"].shape[-1]
    at = np.linspace(0, C - 1, min(C, 129)).round().astype(int)
    for name, (color, line) in ORDERS.items():
        by_text = 100 * curves[name][..., at].mean((1, 2))  # (N, points)
        table = place_table({"lost": by_text}, ("point",)).assign(dropped=100 * (at + 1) / C)
        band(ax, table, "dropped", "lost", color=color, ls=line, label=name.replace("_", " "))
    ax.set(xlabel="cached keys dropped (%)", ylabel="attention lost (%)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=10)  # off the curves


def sink_norms(ax: Axes, sinks: pd.DataFrame, levels: Mapping[str, float]) -> None:
    """Attention on the first token against its norm, a point for each head; `levels` are marked.

    `sinks` has `layer`, `attention` and `norm_over_median`, the last two with 95% intervals.
    """
    layers = sinks.layer.nunique()
    shares = ["attention", "attention_low", "attention_high"]
    percent = sinks.assign(**{column: 100 * sinks[column] for column in shares})
    for layer, (color, label) in enumerate(
        zip(layer_colors(layers), _some_labels(layers), strict=True)
    ):
        look = {"color": color, "elinewidth": 1, "label": label}
        points(ax, percent[percent.layer == layer], "norm_over_median", "attention", **look)
    ax.axvline(1, color=BLACK, lw=1, ls=":")
    place = {"transform": ax.get_yaxis_transform(), "va": "bottom", "ha": "right", "fontsize": 10}
    for name, share in levels.items():
        ax.axhline(100 * share, color=BLACK, lw=1, ls=":")
        ax.text(0.995, 100 * share, name, **place)
    plain_log(ax.yaxis)
    ax.set(xlabel="norm of the first token's key / median norm", ylabel="attention on it (%)")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def skip_changes(ax: Axes, checked: pd.DataFrame) -> None:
    """Perplexity against dense, the first row of `checked`, with intervals over texts."""
    rest = checked.iloc[:0:-1]  # without dense, the row after it on top
    names = [f"{row.method} ({row.tokens_held:,.0f})" for row in rest.itertuples()]
    ax.set_yticks(range(len(names)), names)
    rest = rest.assign(place=range(len(names)))
    chance = rest.method.str.startswith("random")
    for part, color in ((rest[chance], GREY), (rest[~chance], PURPLE)):
        points(ax, part, "ppl_change_%", "place", fmt="P", color=color, capsize=3)
    ax.axvline(0, color=BLACK, lw=1, ls=":")
    ax.set(xlabel="perplexity against dense (%)")
    heading = "norms kept, layers skipped (tokens per layer)"
    ax.set_title(heading, fontsize=11, weight="normal", loc="right")
