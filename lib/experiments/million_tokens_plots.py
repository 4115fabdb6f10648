"""The figure of the long stream: perplexity and memory along the way."""

import pandas as pd
from matplotlib.figure import Figure

from lib.plots import BLACK, WIDTH, method_color, plain_log, points, subplots, thousands


def stream(along: pd.DataFrame) -> Figure:
    """Perplexity above, memory below, by `position` in the stream: a table of `follow_stream`."""
    shape = {"sharex": True, "height_ratios": [3, 2], "layout": "constrained"}
    fig, (top, bottom) = subplots(2, 1, figsize=(WIDTH, 5.6), **shape)
    color = method_color("streaming")
    bars = {"color": color, "alpha": 0.5, "markersize": 5, "elinewidth": 1}
    points(top, along, "position", "ppl", label="each part, 95% interval", **bars)
    top.plot(along.position, along.running_ppl, color=color, label="all up to here")
    top.set(ylabel="perplexity", ylim=(0, 1.3 * along.ppl_high.max()))
    top.legend(ncols=2)
    bottom.plot(along.position, along.resident_mib, color=BLACK, label="whole process")
    bottom.plot(along.position, along.cache_mib, color=color, label="cache")
    bottom.set(xlabel="position in the stream (tokens)", ylabel="memory (MiB)")
    plain_log(bottom.yaxis)
    thousands(bottom.xaxis)
    bottom.locator_params(axis="x", nbins=5)
    bottom.legend()
    return fig
