"""`papermill notebooks/03_speed.ipynb -p cache 512`, typed just so, wherever one types it."""

import base64
import json
import os

import nbformat
import pytest
from conftest import SAVE, Sandbox, at_terminal, write_notebook

from lib.paths import ROOT
from lib.results.manifest import read_manifest
from lib.run.staging import tidy_copy

LINE = ["papermill", "notebooks/03_speed.ipynb", "-p", "cache", "512"]
COPY = "notebooks/03_speed.ipynb"
WRITE = "from lib.paths import results_dir; (results_dir() / 'given').write_text(str(cache))"


@pytest.fixture
def speed(sandbox) -> Sandbox:
    sandbox.notebook("03_speed", WRITE, "assert cache != 13")
    return sandbox


def cache_of(sandbox: Sandbox) -> str:
    """The cache that the last good run was given, by what it wrote; the copy must agree."""
    value = (sandbox.results / "given").read_text()
    copy = nbformat.read(sandbox.results / COPY, as_version=4)
    assert copy.metadata.papermill.parameters == {"cache": int(value)}
    return value


def test_the_line_on_the_real_notebook(tmp_path):
    results = tmp_path / "results"
    tiny = "{context_lengths: [64], new_tokens: 2, repeats: 1, model: reference}"
    command = ["papermill", "notebooks/03_speed.ipynb", "-p", "cache", "16", "-y", tiny]
    environment = Sandbox(ROOT).environment() | {"KVLAB_RESULTS": str(results)}
    code, shown = at_terminal(command, cwd=ROOT, env=environment)
    assert code == 0, shown
    assert (results / COPY).is_file()


def test_at_a_terminal(speed):
    code, shown = at_terminal(LINE, cwd=speed.root, env=speed.environment())
    assert code == 0, shown
    assert "Saved results/notebooks/03_speed.ipynb" in shown
    assert cache_of(speed) == "512"


def test_in_a_script_and_with_a_pipe(speed):
    for options in ({}, {"input": ""}, {"input": "not a notebook"}):
        done = speed.call(*LINE, **options)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert cache_of(speed) == "512"
        (speed.results / COPY).unlink()


def test_from_elsewhere_and_through_a_link(speed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(speed.root)
    done = speed.call("papermill", "link/notebooks/03_speed.ipynb", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (speed.results / COPY).is_file()
    assert [path.name for path in elsewhere.iterdir()] == ["link"]


def test_all_ways_to_give_parameters(speed):
    speed.notebook("04_x")
    (speed.root / "quick.yaml").write_text("03_speed: {cache: 1, lengths: [5, 6]}\n04_x: {a: 1}\n")
    encoded = base64.b64encode(b"{cache: 2, model: small}").decode()
    done = speed.call(
        *("papermill", "notebooks/03_speed.ipynb", "-b", encoded, "-f", "quick.yaml"),
        *("-y", "positions: original", "-p", "cache", "1e3", "-r", "model", "410"),
    )
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stderr
    given = nbformat.read(speed.results / COPY, as_version=4).metadata.papermill.parameters
    assert given == {
        "cache": 1000,
        "model": "410",
        "lengths": [5, 6],
        "positions": "original",
    }


def test_lists_and_numbers_are_alike_in_all_ways(sandbox):
    lines = ["rate: float = 1.0  # a number", "methods: list[str] = ['a']  # names"]
    write_notebook(sandbox.notebook("03_speed"), "pass", parameters="\n".join(lines))
    (sandbox.root / "given.yaml").write_text("rate: 1e-3\nmethods: [b, c]\n")
    for arguments in (
        ("-p", "rate", "1e-3", "-p", "methods", "[b, c]"),
        ("-y", "{rate: 1e-3, methods: [b, c]}"),
        ("-f", "given.yaml"),
    ):
        done = sandbox.call(*LINE[:2], *arguments)
        assert done.returncode == 0, done.stderr
        copy = nbformat.read(sandbox.results / COPY, as_version=4)
        assert copy.metadata.papermill.parameters == {"rate": 0.001, "methods": ["b", "c"]}


@pytest.mark.parametrize(("spelt", "meant"), [("false", False), ("False", False), ("TRUE", True)])
def test_a_bool_is_spelt_as_in_yaml_or_python(sandbox, spelt, meant):
    """papermill itself reads `-p plot false` as a string, and a string is true."""
    write_notebook(sandbox.notebook("03_speed"), "plot", parameters="plot: bool = True")
    done = sandbox.call(*LINE[:2], "-p", "plot", spelt)
    assert done.returncode == 0, done.stderr
    copy = nbformat.read(sandbox.results / COPY, as_version=4)
    assert copy.cells[-1].outputs[0]["data"]["text/plain"] == str(meant)
    refused = sandbox.call(*LINE[:2], "-p", "plot", "no")
    assert refused.returncode == 2
    assert "parameter plot must be a bool; got 'no'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-p", "cahce", "512"], "unknown parameter cahce; did you mean cache?"),
        (["-p", "cache", "abc"], "parameter cache must be an int in [1..1024]; got 'abc'"),
        (["-p", "cache", "0"], "parameter cache must be an int in [1..1024]; got 0"),
        (["-r", "cache", "512"], "got '512' (-r gives text as it stands: -p cache 512)"),
        (["--prepare-only"], "--prepare-only needs an output path: "),
        (["-k", "pyton3"], "no kernel pyton3; did you mean python3? (kernels: "),
        (["no/out.ipynb"], "output path no/out.ipynb: there is no folder no"),
        (["-y", "{lengths: [1, 0]}"], "parameter lengths must be a list of int in [1..4096]"),
        (["-y", "{lengths: "], "03_speed.ipynb: "),
        (["-f", "bad.yaml"], "parameter positions must be a str out of: in_cache, original"),
        (["-f", "absent.yaml"], "absent.yaml"),
        (["-f", "misspelt.yaml"], "no notebook 03_sped; did you mean 03_speed?"),
        (["-b", base64.b64encode(b"cache: 9999").decode()], "parameter cache must be"),
        (["-p", "cache", "0", "out.ipynb"], "parameter cache must be"),
        (["-p", "cache", "0", "--prepare-only", "out.ipynb"], "parameter cache must be"),
    ],
)
def test_a_refusal_is_told_before_anything_happens(speed, arguments, told):
    (speed.root / "bad.yaml").write_text("positions: in-cache\n")
    (speed.root / "misspelt.yaml").write_text("03_sped: {cache: 1}\n")
    done = speed.call("papermill", "notebooks/03_speed.ipynb", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not speed.results.exists()
    assert not (speed.root / "out.ipynb").exists()


def test_a_misspelt_notebook_is_named(speed):
    for wrong in (["03_speed.ipynb"], ["notebook/03_sped.ipynb", "out.ipynb"]):
        done = speed.call("papermill", *wrong)
        assert f"no notebook {wrong[0]}; did you mean notebooks/03_speed.ipynb?" in done.stderr
        assert done.returncode != 0
    done = speed.call("papermill", "notebooks/03_sped.ipynb")
    told = "no notebook 03_sped.ipynb; did you mean 03_speed.ipynb? (notebooks: 03_speed.ipynb)"
    assert (done.returncode, done.stderr) == (2, f"Error: {told}\n")
    code, shown = at_terminal(
        ["papermill", "notebooks/03_sped.ipynb"], cwd=speed.root, env=speed.environment()
    )
    assert code == 2
    assert "did you mean 03_speed.ipynb?" in " ".join(shown.split())


def test_a_run_says_where_its_files_are(speed):
    done = speed.call(*LINE)
    assert f"Output Notebook: {COPY.replace('notebooks', 'results/notebooks', 1)}" in done.stderr
    assert ".staging" not in done.stderr
    assert "Saved results/notebooks/03_speed.ipynb; figures and tables: results\n" in done.stderr
    done = speed.call("papermill", "notebooks/03_speed.ipynb", "out.ipynb")
    assert "Saved out.ipynb; figures and tables: results\n" in done.stderr


def test_a_failed_run_keeps_the_good_copy(speed):
    assert speed.call(*LINE).returncode == 0
    before = speed.files()
    done = speed.call(*LINE[:-1], "13")
    assert done.returncode == 1
    failed = "notebooks/03_speed.failed.ipynb"
    assert f"the failed copy is results/{failed}" in done.stderr
    after = speed.files()
    assert "AssertionError" in after.pop(failed).decode()
    assert after == before
    assert speed.call(*LINE).returncode == 0
    assert speed.files().keys() == before.keys()


def test_a_results_folder_that_cannot_be_made_is_one_sentence(speed):
    done = speed.call(*LINE, env=speed.environment() | {"KVLAB_RESULTS": "/proc/nope"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: 03_speed.ipynb: ")
    assert "/proc/nope" in last


def test_a_value_that_lib_refuses_is_one_sentence(speed):
    speed.notebook("03_speed", "from lib import load_tokens", "load_tokens('no.txt', None)")
    done = speed.call(*LINE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error, note = done.stderr.splitlines()[-2:]
    assert error == "Error: 03_speed.ipynb: FileNotFoundError: text 'no.txt': no such file"
    assert note.endswith("the failed copy is results/notebooks/03_speed.failed.ipynb")


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [([], {}), (["-p", "cache", "64"], {}), (["-p", "cache", "512"], {"cache": 512})],
)
def test_the_manifest_names_parameters_that_are_not_the_defaults(sandbox, arguments, parameters):
    sandbox.notebook("03_speed", SAVE)
    done = sandbox.call(*LINE[:2], *arguments)
    assert done.returncode == 0, done.stderr
    entry = read_manifest(sandbox.results)["tables/small.csv"]
    assert entry["parameters"] == parameters


def test_widgets_are_dropped_from_copies(speed):
    speed.notebook("03_speed", "import ipywidgets; ipywidgets.IntSlider()", "1 + 1")
    assert speed.call(*LINE).returncode == 0
    *_, slider, text = nbformat.read(speed.results / COPY, as_version=4).cells
    assert slider.outputs == []
    assert text.outputs[0]["data"]["text/plain"] == "2"


@pytest.mark.parametrize(
    ("folder", "up"),
    [
        ("results/notebooks", "../.."),
        ("results/smollm2/notebooks", "../../.."),
        ("/elsewhere/notebooks", ".."),
    ],
)
def test_links_of_copies_work_where_they_are(tmp_path, folder, up):
    cells = [nbformat.v4.new_markdown_cell("[word](../docs/word.md), [paper](https://a.org)")]
    cells.append(nbformat.v4.new_code_cell("'](../docs'"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    tidy_copy(tmp_path / "a.ipynb", ROOT / folder)
    text, code = nbformat.read(tmp_path / "a.ipynb", as_version=4).cells
    assert text.source == f"[word]({up}/docs/word.md), [paper](https://a.org)"
    assert code.source == "'](../docs'"


def test_runs_are_alike(speed):
    """A run that changes nothing changes no file."""
    speed.call(*LINE)
    before = speed.files()
    speed.call(*LINE)
    assert speed.files() == before


def test_a_given_output_path_keeps_its_meaning(speed):
    done = speed.call("papermill", COPY, "out.ipynb", "-p", "cache", "512")
    assert done.returncode == 0, done.stderr
    assert (speed.root / "out.ipynb").is_file()
    assert "notebooks" not in os.listdir(speed.results)
    done = speed.call("papermill", COPY, "-", "-p", "cache", "512")
    assert json.loads(done.stdout)["metadata"]["papermill"]["parameters"] == {"cache": 512}
    assert "notebooks" not in os.listdir(speed.results)


def test_other_notebooks_are_papermills_own(speed):
    """No default output path, no check, no staging: printed to stdout, as papermill does."""
    write_notebook(speed.root / "other.ipynb", "import os; 'KVLAB_NOTEBOOK' in os.environ")
    done = speed.call("papermill", "other.ipynb", "-p", "cahce", "512")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)["cells"][-1]
    assert last["outputs"][0]["data"]["text/plain"] == ["False"]
    code, shown = at_terminal(["papermill", "other.ipynb"], cwd=speed.root, env=speed.environment())
    assert code == 2
    assert "OUTPUT_PATH" in shown
    assert not speed.results.exists()


def test_papermill_from_python_is_checked_too(speed):
    program = (
        "import papermill, sys;"
        f"papermill.execute_notebook('{COPY}', 'out.ipynb', eval(sys.argv[1]), progress_bar=False)"
    )
    refused = speed.call("python", "-c", program, "{'cache': 9999}")
    assert refused.returncode == 1
    assert "parameter cache must be an int in [1..1024]; got 9999" in refused.stderr
    assert not (speed.root / "out.ipynb").exists()
    done = speed.call("python", "-c", program, "{'cache': 1e3}")
    assert done.returncode == 0, done.stderr
    copy = nbformat.read(speed.root / "out.ipynb", as_version=4)
    assert copy.metadata.papermill.parameters == {"cache": 1000}
    assert "cache = 1000\n" in copy.cells[1].source
    assert speed.files() == {"given": b"1000"}


def test_a_failed_run_from_python_leaves_results_as_they_are(speed):
    program = (
        "import papermill, sys;"
        "papermill.execute_notebook(sys.argv[1], 'out.ipynb', {'cache': int(sys.argv[2])})"
    )
    assert speed.call("python", "-c", program, COPY, "12").returncode == 0
    failed = speed.call("python", "-c", program, COPY, "13")
    assert failed.returncode == 1
    assert "AssertionError" in failed.stderr
    assert speed.files() == {"given": b"12"}
