"""The figure of the reference model: loss, copying and sinks during its training."""

import pandas as pd
from matplotlib.figure import Figure

from lib.plots import BLUE, GREEN, GREY, ORANGE, VERMILLION, WIDTH, subplots


def sinks_emerge(history: pd.DataFrame, heads: pd.DataFrame) -> Figure:
    """Losses above, the sink strength of every head below, by training tokens: a `read_log`."""
    millions = history.tokens.clip(lower=history.tokens[1] / 2) / 1e6
    shape = {"sharex": True, "layout": "constrained", "height_ratios": [1, 1.2]}
    fig, (top, bottom) = subplots(2, 1, figsize=(WIDTH, 6.6), **shape)
    top.plot(millions, history.heldout_loss, color=BLUE, label="held-out text")
    top.plot(millions, history.copying_loss, color=VERMILLION, label="copying")
    top.set(ylabel="loss (nats per token)", ylim=0)
    top.legend(loc="lower left")
    strongest = heads.iloc[-1].nlargest(4).index
    bottom.plot(millions, heads.drop(columns=strongest), color=GREY, lw=0.8)
    for head, color in zip(strongest, (BLUE, VERMILLION, ORANGE, GREEN), strict=True):
        bottom.plot(millions, heads[head], color=color, label=head)
    for ax in (top, bottom):
        for boundary in history.tokens[history.phase.diff() > 0]:
            ax.axvline(boundary / 1e6, color="#777777", linewidth=1, linestyle=":")
    bottom.set_xscale("log")
    bottom.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    bottom.set_xlabel("training tokens (millions; dotted: next phase)")
    bottom.set_ylabel("attention on first token")
    bottom.legend(title="strongest heads", loc="upper left")
    return fig
