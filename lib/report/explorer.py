"""The explorer's page: sliders over the precomputed grids, drawn by Bokeh in the browser."""

import json
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    Div,
    RadioButtonGroup,
    Slider,
    Whisker,
)
from bokeh.plotting import figure

from lib.measure.rows import BASELINE
from lib.names import display_name
from lib.plots import method_color

from .grid import DENSE, setting

Grid = dict[str, Any]
WIDTH = 720  # pixels; a page is as wide
METHODS = (BASELINE, "recent_only", "streaming_llm")
CURVES = tuple(map(display_name, METHODS))
COLORS = [method_color(name) for name in METHODS]
# looks up what the sliders stand on, fills the sources and tells the numbers
_REDRAW = """
const grid = Object.values(grids)[model.active];
sinks_.end = grid.sinks.length - 1;
window_.end = grid.windows.length - 1;
if (cb_obj === model && words.tags.length) {  // another grid: to where the same values stand
  const near = (values, wanted) => values.reduce((best, x, place) =>
    Math.abs(x - wanted) < Math.abs(values[best] - wanted) ? place : best, 0);
  const places = [near(grid.sinks, words.tags[0]), near(grid.windows, words.tags[1])];
  [sinks_.value, window_.value] = places;
}
const S = grid.sinks[Math.min(sinks_.value, sinks_.end)];
const R = grid.windows[Math.min(window_.value, window_.end)];
words.tags = [S, R];
const chosen = ["dense", `0+${R}`, `${S}+${R}`].map(name => grid.settings[name]);
const numbers = column => column.map(x => x ?? NaN);
chosen.forEach((one, i) => {
  curves[i].data = {position: grid.position, nll: numbers(one.nll),
    nll_low: numbers(one.nll_low), nll_high: numbers(one.nll_high)};
});
const [ppl, low, high] = [0, 1, 2].map(end => chosen.map(one => one.ppl[end]));
bars.data = {...bars.data, ppl, low, high};
const told = ppl.map(x => x.toPrecision(3));
words.text = `${S} sinks + ${R} recent tokens: perplexity <b>${told[2]}</b> on ` +
  `${grid.tokens} tokens; the same window without sinks ${told[1]}, dense ${told[0]}.`;
"""


def read_grid(path: Path) -> Grid:
    """A grid's file with the values of its sliders; pairs that are not there yet aren't offered."""
    grid = json.loads(path.read_text(encoding="utf-8"))
    pairs = [tuple(map(int, name.split("+"))) for name in grid["settings"] if name != DENSE]
    sinks = sorted({pair[0] for pair in pairs} | {0})
    windows = sorted({pair[1] for pair in pairs})
    whole = [w for w in windows if all(setting(s, w) in grid["settings"] for s in sinks)]
    kept = {name: grid[name] for name in ("made", "settings")}
    return grid["about"] | kept | {"sinks": sinks, "windows": whole}


def explorer(grids: dict[str, Grid], sinks: int = 4, window: int = 128) -> tuple[str, str]:
    """(script, div) of the explorer over grids by model, at first with about these settings."""
    first = next(iter(grids.values()))
    dense = first["settings"][DENSE]  # until the page is there
    curve = {name: dense[name] for name in ("nll", "nll_low", "nll_high")}
    curves = [ColumnDataSource({"position": first["position"], **curve}) for _ in CURVES]
    three = {
        name: [value] * 3 for name, value in zip(("ppl", "low", "high"), dense["ppl"], strict=True)
    }
    bars = ColumnDataSource({"name": CURVES, "color": COLORS, **three})
    words = Div(text="", width=WIDTH)
    model = RadioButtonGroup(labels=list(grids), active=0)
    sliders = {
        name: _slider(name, key, grids, model, wanted)
        for name, key, wanted in (("sinks", "sinks", sinks), ("window", "windows", window))
    }
    told = {"grids": grids, "curves": curves, "bars": bars, "words": words, "model": model}
    redraw = CustomJS(args=told | {f"{name}_": x for name, x in sliders.items()}, code=_REDRAW)
    model.js_on_change("active", redraw)
    for slider in sliders.values():
        slider.js_on_change("value", redraw)
    plots = row(_losses(curves), _perplexities(bars))
    document = Document()
    document.add_root(column(model, row(*sliders.values()), words, plots))
    document.js_on_event("document_ready", redraw)
    return components(document.roots[0])


def _slider(
    title: str, key: str, grids: dict[str, Grid], model: RadioButtonGroup, wanted: int
) -> Slider:
    """A slider over the places of a grid's values; it shows the value that stands there."""
    values = next(iter(grids.values()))[key]
    nearest = min(range(len(values)), key=lambda place: abs(values[place] - wanted))
    code = f"return `${{Object.values(grids)[model.active].{key}[tick]}} tokens`"
    shown = CustomJSTickFormatter(args={"grids": grids, "model": model}, code=code)
    look = {"title": title, "format": shown, "width": WIDTH // 2 - 20}
    return Slider(start=0, end=len(values) - 1, value=nearest, **look)


def _losses(curves: list[ColumnDataSource]):
    plot = figure(
        width=WIDTH - 280,
        height=360,
        x_axis_type="log",
        x_axis_label="position (tokens)",
        y_axis_label="NLL (nats per token)",
        toolbar_location=None,
        title="Loss by position",
    )
    for name, color, curve in zip(CURVES, COLORS, curves, strict=True):
        look = {"source": curve, "legend_label": name}
        plot.varea("position", "nll_low", "nll_high", fill_color=color, fill_alpha=0.15, **look)
        plot.line("position", "nll", line_color=color, line_width=2, **look)
    plot.add_layout(plot.legend[0], "below")
    plot.legend.orientation = "horizontal"
    return plot


def _perplexities(bars: ColumnDataSource):
    plot = figure(
        width=280,
        height=360,
        x_range=list(CURVES),
        y_axis_label="perplexity",
        toolbar_location=None,
        title="Over the whole text",
    )
    plot.vbar(x="name", top="ppl", width=0.7, fill_color="color", line_color=None, source=bars)
    plot.add_layout(Whisker(base="name", lower="low", upper="high", source=bars))
    plot.scatter("name", "high", alpha=0, source=bars)  # the axis reaches up to it
    plot.y_range.start = 0
    plot.xgrid.grid_line_color = None
    return plot
