"""Looks and names of methods, and what the helpers of figures draw."""

from functools import partial

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from nbconvert import HTMLExporter

from lib.compressors import ROWS, list_methods
from lib.names import display_name
from lib.plots import (
    LOOKS,
    band,
    label_line_ends,
    method_color,
    method_style,
    points,
    subplots,
    use_style,
)
from lib.results.save import save_figure


def test_methods_have_one_name_on_pages():
    assert display_name("baseline") == "dense"
    assert display_name("recent_only_512") == "window 512"
    assert (
        display_name("streaming_512") == display_name("streaming_llm_512") == "sinks + window 512"
    )
    assert display_name("streaming_lazy_64") == "sinks + window, lazy 64"
    assert display_name("streaming, token by token") == "sinks + window, token by token"
    for own in ("recompute", "l2_ratio_1.0_512", "tova_64", "recompute (sample)", ""):
        assert display_name(own) == own


def test_every_method_has_its_own_look():
    assert len({(style.color, style.marker) for style in LOOKS.values()}) == len(LOOKS)
    named = {method_style(row) for row in ROWS if not row.startswith("kvpress")}
    assert len(named) == len(list_methods()) + 1  # with streaming_lazy and two pyramids
    assert method_color("streaming_512") == method_color("streaming_llm_512") == "#0072B2"
    assert method_style("l2_ratio_0.8_512") == LOOKS["l2_compress"]


def test_new_methods_get_looks_of_their_own():
    """Also one whose name begins as another's does; with any budget it is the same."""
    names = ["something_else", "h2o_new", *(row for row in ROWS if row.startswith("kvpress"))]
    looks = [method_style(name) for name in names]
    assert [method_style(f"{name}_512") for name in names] == looks
    all_looks = {(style.color, style.marker) for style in [*looks, *LOOKS.values()]}
    assert len(all_looks) == len(names) + len(LOOKS)


def test_bands_and_bars_are_the_intervals():
    _, ax = plt.subplots()
    plt.close()
    table = pd.DataFrame({"x": [1.0, 2], "y": [3.0, 5], "y_low": [2.0, 5.5], "y_high": [4.0, 9]})
    band(ax, table, "x", "y", color="red")
    points(ax, table, "y", "x", color="red")
    low, high = ax.collections[0].get_paths()[0].get_extents().get_points()
    assert (low.tolist(), high.tolist()) == ([1, 2], [2, 9])
    bars = [segment.tolist() for segment in ax.collections[1].get_segments()]
    assert bars == [[[2, 1], [4, 1]], [[5, 2], [9, 2]]]  # an end on the wrong side makes no arm
    band(ax, table[["x", "y"]], "x", "y")
    points(ax, table[["x", "y"]], "x", "y")
    assert len(ax.collections) == 2


def test_labels_at_line_ends_do_not_overlap():
    _, ax = plt.subplots()
    plt.close()
    ax.plot([1, 2, 3], label="baseline")
    ax.plot([1, 2, 3.01], label="streaming_512")
    label_line_ends(ax)
    assert [text.get_text() for text in ax.texts] == ["baseline", "streaming_512"]
    heights = [text.get_position()[1] for text in ax.texts]
    assert heights[1] - heights[0] >= 0.06


def test_a_notebooks_picture_has_its_caption_as_alternative_text(monkeypatch, tmp_path):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    monkeypatch.delenv("KVLAB_NOTEBOOK", raising=False)
    shell = InteractiveShell.instance()
    format = shell.display_formatter.format
    pictures = shell.display_formatter.formatters["image/png"]
    pictures.for_type(Figure, partial(print_figure, base64=True))
    for _ in range(2):  # a cell may be run again
        use_style()
    fig, _ = subplots()
    plain, _ = format(fig)
    assert plain.keys() == {"text/plain", "image/png"}
    save_figure(fig, "some", 'A "curve".\n It rises.')
    captioned, _ = format(fig)
    assert captioned.keys() == {"text/plain", "text/html"}  # the picture once
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", captioned)])
    for template in ("lab", "classic"):
        page, _ = HTMLExporter(template_name=template).from_notebook_node(
            nbformat.v4.new_notebook(cells=[cell])
        )
        (shown,) = BeautifulSoup(page, "html.parser").find_all("img")
        assert shown["alt"] == 'A "curve". It rises.'
        assert shown["src"].startswith("data:image/png;base64,iVBOR")
    monkeypatch.setenv("KVLAB_NOTEBOOK", "00_some")  # an executed copy
    drawn, metadata = format(fig)
    assert drawn.keys() == plain.keys()
    assert metadata["image/png"]["alt"] == 'A "curve". It rises.'
    InteractiveShell.clear_instance()
