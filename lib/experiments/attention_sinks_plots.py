"""The figures of attention sinks: maps, strengths, depth, other beginnings, and training."""

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

NUMBERED = 16  # heads up to which a map of heads shows its values as numbers
ON_IT = "attention on the first token"


def map_panels(maps: torch.Tensor, shown: int) -> Figure:
    """A panel for each head of `maps` (L, H, T, T): its first `shown` tokens, on a log scale."""
    layers, heads = maps.shape[:2]
    size = (WIDTH, 0.87 * WIDTH * layers / heads + 0.6)
    fig, axes = subplots(layers, heads, figsize=size, squeeze=False, layout="constrained")
    for (layer, head), ax in np.ndenumerate(axes):
        picture = np.log10(maps[layer, head, :shown, :shown].numpy().clip(1e-3))
        look = {"vmin": -3, "vmax": 0, "cmap": "magma"}
        image = ax.imshow(np.where(np.tri(shown) > 0, picture, np.nan), **look)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        if head == 0:
            ax.set_ylabel(f"layer {layer}")
        if layer == 0:
            ax.set_title(f"head {head}", fontsize=11)
    fig.colorbar(image, ax=axes, shrink=0.5, label="attention (log10)")
    fig.supxlabel(f"key (token, the first {shown})", fontsize=12)
    fig.supylabel("query (token)", fontsize=12)
    return fig


def strength_map(table: pd.DataFrame, threshold: float) -> Figure:
    """`sink_strength` by `layer` and `head`; a dot where its interval includes the threshold."""
    places = table.set_index(["layer", "head"])
    grid = places.sink_strength.unstack("head")
    size = (WIDTH, 0.55 * len(grid) + 1.6)
    fig, ax = subplots(figsize=size, layout="constrained")
    look = {"vmin": 0, "vmax": 1, "cmap": "viridis", "cbar_kws": {"label": ON_IT}}
    sns.heatmap(grid, annot=grid.shape[1] <= NUMBERED, fmt=".2f", ax=ax, **look)
    unsure = (places.sink_strength_low < threshold) & (threshold < places.sink_strength_high)
    mark_cells(ax, unsure.unstack("head").to_numpy())
    ax.set(xlabel="head (dot: the 95% interval includes the threshold)", ylabel="layer")
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
    ax.set(xlabel="layer", ylabel="share of attention", xticks=depth.layer.unique(), ylim=0)
    ax.legend(title="attention on (dotted: uniform)")
    return fig


def other_starts(starts: pd.DataFrame, threshold: float) -> Figure:
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


def training(history: pd.DataFrame, threshold: float, texts: int) -> Figure:
    """Heads with a sink and its strength by `step` of `training_sinks`, each over `texts` texts."""
    fig, (left, right) = subplots(1, 2, figsize=(WIDTH, 3.2), sharex=True, layout="constrained")
    dots = {"marker": "o", "ms": 3.5, "lw": 1}
    band(left, history, "step", "heads_%", color=BLUE, **dots)
    band(right, history, "step", "strongest", color=VERMILLION, label="strongest head", **dots)
    band(right, history, "step", "mean", alpha=0.2, color=BLUE, label="mean of heads", **dots)
    right.axhline(threshold, color="#777777", linewidth=1, linestyle=":")
    for ax, label in ((left, "heads with a sink (%)"), (right, ON_IT)):
        ax.set(xlabel=f"training step (n = {texts} texts)", ylabel=label, ylim=0)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    right.legend(loc="center right", title=f"dotted: threshold {threshold:g}")
    return fig
