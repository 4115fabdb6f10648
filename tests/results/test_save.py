"""Tables, figures and their manifest."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib.compressors import ROWS, list_methods
from lib.plots import METHODS, label_line_ends, method_color, method_style, use_style
from lib.results.save import machine_line, save_figure, save_table, to_markdown

TABLE = pd.DataFrame(
    {
        "method": ["baseline", "streaming_512"],
        "PPL": [12.345678, 123456.789],
        "tokens": [1_000_000, 512],
        "share": [0.1 + 0.2, float("nan")],
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
        "What it costs.",
        "",
        "| method        |    PPL |   tokens |   share |",
        "|:--------------|-------:|---------:|--------:|",
        "| baseline      |  12.35 |  1000000 |     0.3 |",
        "| streaming_512 | 123457 |      512 |       – |",
    ]


def test_small_and_huge_numbers_stay_legible():
    table = to_markdown(pd.DataFrame({"x": [1e-7, 1234.5, 2.5e12, 1.0]}))
    cells = [line.strip("| ") for line in table.splitlines()[2:]]
    assert cells == ["1e-07", "1234", "2.500e+12", "1"]


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
    assert method_style("dense") == METHODS["baseline"]
    assert method_style("l2_compress_0.9") == METHODS["l2_compress"]
    assert method_color("l2norm") == method_color("something else")


def test_labels_at_line_ends_do_not_overlap():
    texts = small_figure().axes[0].texts
    assert [text.get_text() for text in texts] == ["baseline", "streaming_512"]
    heights = [text.get_position()[1] for text in texts]
    assert heights[1] - heights[0] >= 0.06
