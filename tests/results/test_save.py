"""Tables, figures and their manifest."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib.compressors import ROWS, list_methods
from lib.plots import (
    METHODS,
    band,
    display_name,
    label_line_ends,
    method_color,
    method_style,
    points,
    use_style,
)
from lib.results.save import machine_line, readable, save_figure, save_table

TABLE = pd.DataFrame(
    {
        "method": ["baseline", "streaming_512"],
        "PPL": [12.345678, 123456.789],
        "PPL_low": [11.0, float("nan")],
        "PPL_high": [21.8123, float("nan")],
        "tpot_ms": [20.123, 0.05],
        "tpot_ms_q1": [19.0, 0.0456],
        "tpot_ms_q3": [21.987, 0.05],
        "tokens": [1_000_000, 512],
        "share": [0.1 + 0.2, float("nan")],
        "n_texts": [6, 6],
        "n_tokens": [10, 20],
    }
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    monkeypatch.setenv("KVLAB_NOTEBOOK", "03_speed")
    return tmp_path


def small_figure():
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], label="baseline")
    ax.plot([1, 2, 3.01], label="streaming_512")
    label_line_ends(ax)
    plt.close(fig)
    return fig


def test_a_table_is_saved_twice(results):
    save_table(TABLE, "quality", "What it costs.")
    read = pd.read_csv(results / "tables" / "quality.csv")
    pd.testing.assert_frame_equal(read, TABLE, rtol=1e-5)
    assert (results / "tables" / "quality.md").read_text().splitlines() == [
        "What it costs. All digits: `quality.csv`; n_texts = 6; in parentheses: 95% intervals; "
        "in brackets: quartiles.",
        "",
        "| method             |               PPL |               tpot_ms |   tokens |   share "
        "|   n_tokens |",
        "|:-------------------|------------------:|----------------------:|---------:|--------:"
        "|-----------:|",
        "| dense              | 12.3 (11 to 21.8) |       20.1 [19 to 22] |  1000000 |     0.3 "
        "|         10 |",
        "| sinks + window 512 |            123000 | 0.05 [0.0456 to 0.05] |      512 |       – "
        "|         20 |",
    ]


def test_small_and_huge_numbers_stay_legible():
    numbers = [1e-7, 1234.5, 999.7, 4096.0, 2.5e12, 1.0, -0.0, 15.6789, float("inf")]
    assert readable(pd.DataFrame({"x": numbers})).x.tolist() == [
        *("1e-07", "1230", "1000", "4096", "2.5e+12", "1", "0", "15.7", "inf")
    ]


def test_an_interval_stands_behind_its_number_whatever_the_columns_are_called():
    values = {"x": 1.0, "x_low": 0.9997, "x_high": 1.0004}  # ends that look alike at 3 digits
    values |= {"heads_%": 50.1234, "heads_low": 50.1234, "heads_high": 50.1234}
    values |= {"value": 7, "low": 6.5, "high": 8, "keep_low": 1.5, "keep_low_low": 1.0}
    values |= {"keep_low_high": 2.0, "n": 3, "skip_low": True, "skip_high": False, "last": 2.25}
    shown = readable(pd.DataFrame([values]))
    assert shown.iloc[0].to_dict() == {
        "x": "1 (0.9997 to 1)",
        "heads_%": "50.1 (50.1 to 50.1)",
        "value": "7 (6.5 to 8)",
        "keep_low": "1.5 (1 to 2)",
        "n": 3,
        "skip_low": True,
        "skip_high": False,
        "last": "2.25",
    }


def test_methods_have_one_name_on_pages():
    assert display_name("baseline") == "dense"
    assert display_name("recent_only_512") == "window 512"
    assert (
        display_name("streaming_512") == display_name("streaming_llm_512") == "sinks + window 512"
    )
    assert display_name("streaming_lazy_64") == "sinks + window, lazy 64"
    for own in ("recompute", "l2_ratio_1.0_512", "tova_64", "recompute (sample)", ""):
        assert display_name(own) == own
    table = pd.DataFrame({"next": ["tova_64", None], "as_good": ["baseline, streaming_64", ""]})
    assert readable(table).values.tolist() == [["tova_64", "dense; sinks + window 64"], ["–", ""]]


def test_the_same_figure_is_the_same_file(results):
    use_style()
    save_figure(small_figure(), "lines")
    files = sorted((results / "figures").iterdir())
    assert [path.name for path in files] == ["lines.png", "lines.svg"]
    before = [path.read_bytes() for path in files]
    save_figure(small_figure(), "lines")
    assert [path.read_bytes() for path in files] == before


def test_the_manifest_names_notebook_parameters_and_machine(results, monkeypatch):
    monkeypatch.setenv("KVLAB_PARAMETERS", '{"cache": 512}')
    save_table(TABLE, "quality", "What it costs.")
    monkeypatch.delenv("KVLAB_NOTEBOOK")
    monkeypatch.delenv("KVLAB_PARAMETERS")
    save_figure(small_figure(), "lines")
    manifest = json.loads((results / "manifest.json").read_text())
    machine = machine_line()
    assert manifest == {
        "tables/quality.csv": {
            "caption": "What it costs.",
            "notebook": "03_speed",
            "parameters": {"cache": 512},
            "machine": machine,
        },
        "figures/lines.png": {
            "caption": "",
            "notebook": None,
            "parameters": None,
            "machine": machine,
        },
    }
    for part in ("cores", "GiB RAM", "torch 2", "transformers 5"):
        assert part in machine


def test_a_crash_while_saving_leaves_the_earlier_file(results, monkeypatch):
    save_table(TABLE, "quality", "Before.")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}

    def crash(self, path, **options):
        path.write_text("half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", crash)
    with pytest.raises(KeyboardInterrupt):
        save_table(TABLE, "quality", "After.")
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_every_method_has_its_own_look():
    assert len({(style.color, style.marker) for style in METHODS.values()}) == len(METHODS)
    named = {method_style(row) for row in ROWS if not row.startswith("kvpress")}
    assert len(named) == len(list_methods()) + 1  # with streaming_lazy and two pyramids
    assert method_color("streaming_512") == method_color("streaming_llm_512") == "#0072B2"
    assert method_style("l2_ratio_0.8_512") == METHODS["l2_compress"]


def test_new_methods_get_looks_of_their_own():
    """Also one whose name begins as another's does; with any budget it is the same."""
    names = ["something_else", "h2o_new", *(row for row in ROWS if row.startswith("kvpress"))]
    looks = [method_style(name) for name in names]
    assert [method_style(f"{name}_512") for name in names] == looks
    all_looks = {(style.color, style.marker) for style in [*looks, *METHODS.values()]}
    assert len(all_looks) == len(names) + len(METHODS)


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
    texts = small_figure().axes[0].texts
    assert [text.get_text() for text in texts] == ["baseline", "streaming_512"]
    heights = [text.get_position()[1] for text in texts]
    assert heights[1] - heights[0] >= 0.06
