"""The figures of attention sinks: maps, strengths, depth, other beginnings."""

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from lib.plots import (
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    WIDTH,
    band,
    mark,
    mark_cells,
    points,
    subplots,
)

NUMBERED = (12, 16)  # layers and heads up to which a map of heads shows its values as numbers
SHOWN = (6, 9)  # layers and heads whose attention maps are drawn at most
ON_IT = "attention on the first token"


def map_panels(maps: torch.Tensor, shown: int) -> Figure:
    """A panel for each head of `maps` (L, H, T, T): its first `shown` tokens, on a log scale.

    Of many layers and heads `SHOWN` are drawn, evenly spread from the first to the last.
    """
    places = [_spread(size, most) for size, most in zip(maps.shape, SHOWN, strict=False)]
    rows, columns = map(len, places)
    size = (WIDTH, 0.87 * WIDTH * rows / columns + 0.6)
    fig, axes = subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for (row, column), ax in np.ndenumerate(axes):
        layer, head = places[0][row], places[1][column]
        picture = np.log10(maps[layer, head, :shown, :shown].numpy().clip(1e-3))
        look = {"vmin": -3, "vmax": 0, "cmap": "magma"}
        image = ax.imshow(np.where(np.tri(shown) > 0, picture, np.nan), **look)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        if column == 0:
            ax.set_ylabel(f"layer {layer}", fontsize=11)
        if row == 0:
            ax.set_title(f"head {head}", fontsize=11)
    fig.colorbar(image, ax=axes, shrink=0.5, label="attention (log10)")
    fig.supxlabel(f"key (token, the first {shown})", fontsize=12)
    fig.supylabel("query (token)", fontsize=12)
    return fig


def _spread(size: int, most: int) -> list[int]:
    """Up to `most` of the whole numbers below `size`, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int)).tolist()


def strength_map(table: pd.DataFrame, layers: pd.DataFrame, threshold: float) -> Figure:
    """`sink_strength` by `layer` and `head`, and beside it the `sinks_by_layer`.

    A dot where a head's interval includes the threshold.
    """
    places = table.set_index(["layer", "head"])
    grid = places.sink_strength.unstack("head")
    numbered = all(size <= most for size, most in zip(grid.shape, NUMBERED, strict=True))
    size = (WIDTH, (0.55 if numbered else 0.2) * len(grid) + 1.9)
    shape = {"figsize": size, "width_ratios": [2.6, 1], "layout": "constrained"}
    fig, (left, right) = subplots(1, 2, **shape)
    bar = {"label": ON_IT, "location": "bottom", "shrink": 0.7, "aspect": 30, "pad": 0.02}
    look = {"vmin": 0, "vmax": 1, "cmap": "viridis", "cbar_kws": bar}
    each = 1 if len(grid) <= NUMBERED[0] else 5  # labelled layer
    sns.heatmap(grid, annot=numbered, fmt=".2f", yticklabels=each, ax=left, **look)
    unsure = (places.sink_strength_low < threshold) & (threshold < places.sink_strength_high)
    mark_cells(left, unsure.unstack("head").to_numpy())
    left.set(xlabel="head (dot: the 95% interval includes the threshold)", ylabel="layer")
    right.barh(layers.layer + 0.5, layers["heads_%"], color=BLUE, alpha=0.4, height=0.8)
    centred = layers.assign(layer=layers.layer + 0.5)
    points(right, centred, "heads_%", "layer", color=BLUE, ms=3, elinewidth=1.2)
    right.set(xlabel="heads with a sink (%)", ylim=left.get_ylim(), xlim=(0, 100))
    right.set_yticks(left.get_yticks(), left.get_yticklabels())
    return fig


def mass_by_depth(depth: pd.DataFrame) -> Figure:
    """`mass` on the first tokens by `layer`, a line for each of `first_tokens`; dotted: uniform."""
    fig, ax = subplots(layout="constrained")
    sizes = depth.first_tokens.unique()
    for size, color in zip(sizes, (BLUE, VERMILLION, ORANGE, GREY), strict=False):
        part = depth[depth.first_tokens == size]
        label = "the first token" if size == 1 else f"the first {size} tokens"
        band(ax, part, "layer", "mass", alpha=0.2, marker="o", color=color, label=label)
        ax.axhline(part.uniform.iloc[0], color=color, linestyle=":", linewidth=1)
    layers = depth.layer.unique()
    ticks = layers if len(layers) <= NUMBERED[0] else layers[::5]
    ax.set(xlabel="layer", ylabel="share of attention", xticks=ticks, ylim=0)
    ax.legend(title="attention on (dotted: uniform)")
    return fig


def starts_figure(starts: pd.DataFrame, threshold: float) -> Figure:
    """A row for each beginning of a `sink_table`: heads and texts with a sink, and its strength."""
    fig, (left, right) = subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained")
    look = {"capsize": 3, "elinewidth": 1.5}
    points(left, starts, "heads_%", "text", color=BLUE, **look)
    points(right, starts, "mean", "text", color=BLUE, label="mean of heads", **look)
    strongest = {"color": VERMILLION, "fmt": "D", "label": "strongest head"}
    points(right, starts, "strongest", "text", **strongest, **look)
    shares = zip(starts["texts_with_sink_%"] / 100, starts.n_texts, strict=True)
    hits = [f"{share * count:.0f} of {count}" for share, count in shares]
    place = {"transform": left.get_yaxis_transform(), "va": "center", "fontsize": 10}
    for y, told in zip((-0.7, *range(len(hits))), ("in texts", *hits), strict=True):
        left.text(1.04, y, told, **place)
    left.set(xlabel="heads with a sink (%)", xlim=(-0.03 * starts.heads_high.max() - 0.1, None))
    left.set_ylim(len(hits) - 0.5, -1)
    right.set(xlabel=ON_IT, xlim=(-0.03, 1))
    mark(right, threshold, "threshold")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=2, fontsize=10)
    return fig
