"""The sliders: choose sinks and window, see what is kept and what it costs."""

import io

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib.compressors import Compressor, RecentOnly, StreamingLLM
from lib.measure.perplexity import evaluate
from lib.measure.stats import by_position, log_edges, ppl_ci, stretches, with_interval
from lib.names import display_name
from lib.plots import GREY, WIDTH, band, mark, method_color, points


class Explorer:
    """NLL of one text (T,) under dense, window and sinks + window attention.

    Results are remembered, so that going back with a slider is immediate.
    """

    def __init__(self, model, tokens: torch.Tensor):
        self.model = model
        self.tokens = tokens
        self._done: dict[tuple, torch.Tensor] = {}

    def nll(self, compressor: Compressor | None) -> torch.Tensor:
        """NLL per predicted token, (T - 1,)."""
        key = (type(compressor), *vars(compressor).values()) if compressor else ()
        if key not in self._done:
            self._done[key] = evaluate(self.model, self.tokens, compressor).nll
        return self._done[key]

    def compare(self, start_size: int, recent_size: int) -> dict[str, torch.Tensor]:
        """NLL of the three methods; the window has the same budget as sinks + window."""
        budget = start_size + recent_size
        return {
            "baseline": self.nll(None),
            f"recent_only_{budget}": self.nll(RecentOnly(budget)),
            f"streaming_{budget}": self.nll(StreamingLLM(start_size, recent_size)),
        }

    def table(self, start_size: int, recent_size: int) -> pd.DataFrame:
        """Perplexity of the three methods over the whole text, and over its last quarter.

        95% intervals, `_low` and `_high`, over 16 stretches of each; `n_tokens` are in the first.
        """
        rows = []
        for name, nll in self.compare(start_size, recent_size).items():
            whole, last = stretches(nll), stretches(nll[-(len(nll) // 4) :])
            row = {"method": name}
            for column, part in {"ppl": whole, "ppl_last_quarter": last}.items():
                row |= with_interval(column, ppl_ci(part))
            rows.append(row | {"n_tokens": whole.numel()})
        return pd.DataFrame(rows)

    def draw(self, start_size: int, recent_size: int) -> Figure:
        """What is kept, NLL by position, and the perplexity over the whole text."""
        results = self.compare(start_size, recent_size)
        fig = plt.figure(figsize=(WIDTH, 7), layout="constrained")
        plt.close(fig)  # shown by whoever asked for it
        axes = fig.subplot_mosaic([["kept", "ppl"], ["nll", "nll"]])
        self._draw_kept(axes["kept"], start_size, recent_size)
        self._draw_ppl(axes["ppl"], self.table(start_size, recent_size))
        self._draw_nll(axes["nll"], results, start_size + recent_size)
        return fig

    def _draw_kept(self, ax, start_size: int, recent_size: int) -> None:
        length = len(self.tokens)
        query = np.array([0, min(recent_size, length), length])
        first = np.maximum(query - recent_size, 0)
        color = method_color("streaming_llm")
        ax.fill_betweenx(query, first, query, color=color, alpha=0.4, linewidth=0, label="recent")
        if start_size:  # outlined, so that a few sinks in a long text can be seen
            edge = {"linewidth": 4, "clip_on": False}
            ax.fill_betweenx([0, length], 0, start_size, color=color, label="sinks", **edge)
        ax.set(xlim=(0, length), ylim=(length, 0), xlabel="key (token)", ylabel="query (token)")
        ax.set_title(f"Seen: {start_size} sinks + {recent_size} recent")
        ax.legend(loc="upper right")

    def _draw_ppl(self, ax, table: pd.DataFrame) -> None:
        table = table.assign(name=[display_name(x).replace("+ ", "+\n") for x in table.method])
        ax.bar(table.name, table.ppl, color=[method_color(x) for x in table.method])
        points(ax, table, "name", "ppl", fmt="none", ecolor=GREY, capsize=4)
        above = {"textcoords": "offset points", "ha": "center"}
        for place, row in table.iterrows():
            ax.annotate(f"{row.ppl:.1f}", (place, max(row.ppl, row.ppl_high)), (0, 3), **above)
        ax.margins(y=0.12)
        ax.grid(False, axis="x")
        ax.set_ylabel("perplexity")
        ax.set_title("Over the whole text")

    def _draw_nll(self, ax, results: dict[str, torch.Tensor], budget: int) -> None:
        edges = log_edges(16, len(self.tokens) - 1, per_octave=2)
        for name, nll in results.items():
            curve = by_position(nll[None], edges).set_index("position")
            nats = np.log(curve).reset_index()
            band(ax, nats, "position", "ppl", color=method_color(name), label=display_name(name))
        mark(ax, budget, "cache full")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.set_xlabel("position (tokens; bands: 95% over 16 stretches of each span)")
        ax.set_ylabel("NLL (nats per token)")
        ax.set_title("Loss by position")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=10)

    def widget(self, start_size: int, recent_size: int) -> widgets.Widget:
        """Two sliders and the figure, redrawn when a slider is released."""
        most = max(2, len(self.tokens) // 2)
        style = {"continuous_update": False, "style": {"description_width": "initial"}}
        recent_size = min(recent_size, most)
        sinks = widgets.IntSlider(start_size, 0, 16, description="sinks (tokens)", **style)
        window = widgets.IntSlider(recent_size, 1, most, description="window (tokens)", **style)
        picture = widgets.Image(format="png", width=800)

        def redraw(_=None):
            picture.value = _png(self.draw(sinks.value, window.value))

        for slider in (sinks, window):
            slider.observe(redraw, names="value")
        redraw()
        return widgets.VBox([widgets.HBox([sinks, window]), picture])


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
