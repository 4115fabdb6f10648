"""Tables, figures and their manifest."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import load_model, load_tokens, loaded
from lib.paths import ROOT
from lib.plots import label_line_ends, use_style
from lib.results.manifest import read_manifest
from lib.results.provenance import machine_line
from lib.results.save import readable, save_figure, save_table, to_markdown

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
    monkeypatch.setattr(loaded, "_models", [])
    monkeypatch.setattr(loaded, "_texts", [])
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


def test_a_table_names_what_it_was_measured_on(results):
    load_tokens("docs", load_model("reference")[1], max_tokens=1024)
    save_table(TABLE[["method"]], "named", "What.")
    above = (results / "tables" / "named.md").read_text().splitlines()[0]
    assert above == "What. Run with reference, docs (heldout); all digits: `named.csv`."


def test_of_a_wide_table_some_columns_are_read(results):
    save_table(TABLE, "wide", "Wide.", ["method", "PPL"])
    pd.testing.assert_frame_equal(pd.read_csv(results / "tables" / "wide.csv"), TABLE, rtol=1e-5)
    above, _, head, *_ = (results / "tables" / "wide.md").read_text().splitlines()
    assert above == "Wide. All digits: `wide.csv`; n_texts = 6; in parentheses: 95% intervals."
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["method", "PPL"]
    with pytest.raises(KeyError, match="nothing"):
        save_table(TABLE, "wide", "Wide.", ["nothing"])


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


def test_columns_of_methods_have_their_display_names():
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


def test_the_small_print_stands_below_a_legend(results):
    """As drawn into the file, whose tight box moves what hangs on the figure's edge."""
    fig, ax = plt.subplots(layout="constrained")
    ax.plot([1, 2], label="a line")
    legend = fig.legend(loc="outside lower right")
    plt.close(fig)
    gaps = []

    def note(event):
        prints = [text for text in fig.texts if text.get_gid() == "run"]
        gaps.extend(legend.get_window_extent().y0 - text.get_window_extent().y1 for text in prints)

    fig.canvas.mpl_connect("draw_event", note)
    save_figure(fig, "legend")
    assert gaps
    assert min(gaps) > 0


def test_the_manifest_names_notebook_parameters_and_machine(results, monkeypatch):
    monkeypatch.setenv("KVLAB_PARAMETERS", '{"cache": 512}')
    save_table(TABLE, "quality", "What it costs.")
    monkeypatch.delenv("KVLAB_NOTEBOOK")
    monkeypatch.delenv("KVLAB_PARAMETERS")
    save_figure(small_figure(), "lines")
    manifest = read_manifest(results)
    assert list(manifest) == ["figures/lines.png", "tables/quality.csv"]
    told = ("caption", "notebook", "parameters", "machine")
    figure, table = ([entry[name] for name in told] for entry in manifest.values())
    machine = machine_line()
    assert table == ["What it costs.", "03_speed", {"cache": 512}, machine]
    assert figure == ["", None, None, machine]
    for part in ("cores", "GiB RAM", "torch 2", "transformers 5"):
        assert part in machine


def test_writers_at_the_same_time_lose_no_entry(tmp_path):
    """Each is a process of its own, as notebooks are."""
    program = (
        "import sys; from pathlib import Path; from lib.results.manifest import add_to_manifest\n"
        "for i in range(30): add_to_manifest(Path(sys.argv[1]), {f'{sys.argv[2]}-{i}': {}})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], cwd=ROOT)
        for name in "abc"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(read_manifest(tmp_path)) == 90
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


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


def test_a_bar_in_a_cell_begins_no_cell():
    table = to_markdown(pd.DataFrame({"token": ["<|endoftext|>"], "n": [1]}))
    assert table.splitlines()[2] == "| <\\|endoftext\\|> |   1 |"
