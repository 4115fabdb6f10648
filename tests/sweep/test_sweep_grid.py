"""A sweep's file: which runs it asks for, and what is refused before anything runs."""

import re

import pytest
import yaml

import lib
from lib.paths import NOTEBOOKS, PARAMS, ROOT, all_notebooks
from lib.results.declared import code_cells, declared_outputs
from lib.sweep.depends import modules_of, version_of
from lib.sweep.grid import read_runs

GRID = {
    "notebook": "04_method_comparison",
    "table": "04_comparison",
    "parameters": {"num_samples": 2},
    "over": {"methods": ["streaming", "lagkv"], "lengths speed_lengths": [96, 128]},
}


def runs_of(tmp_path, *grids):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"grids": list(grids)}, sort_keys=False))
    return read_runs(file)


def test_the_shipped_file_asks_for_tables_that_are_saved():
    runs = read_runs(PARAMS / "sweep.yaml")
    assert len({run.id for run in runs}) == len(runs) > 8
    for run in runs:
        assert f"tables/{run.table}.csv" in declared_outputs(run.notebook)
    head = (PARAMS / "sweep.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# .*\babout .* (minutes|hours)\b.* [\d.]+ GB\b", head)


def test_a_grid_is_every_combination_once(tmp_path):
    runs = runs_of(tmp_path, GRID, GRID)
    given = [(run.parameters["methods"], run.parameters["lengths"]) for run in runs]
    methods = (["streaming"], ["lagkv"])
    assert given == [(method, length) for method in methods for length in ([96], [128])]
    for run in runs:
        assert run.parameters["speed_lengths"] == run.parameters["lengths"]
        assert run.parameters["num_samples"] == 2


def test_a_name_tells_the_question_and_the_code(tmp_path):
    (one, *_), (other, *_) = runs_of(tmp_path, GRID), runs_of(tmp_path, GRID | {"minutes": 1})
    assert one.id == other.id  # limits change no number
    (other, *_) = runs_of(tmp_path, GRID | {"parameters": {"num_samples": 3}})
    assert (one.version, one.notebook) == (other.version, other.notebook)
    assert one.key != other.key
    for change in ({"gpus": 1}, {"threads": 2}):  # these may, in their last digits
        (other, *_) = runs_of(tmp_path, GRID | change)
        assert one.key != other.key


def test_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("grids: [{notebook: 03_speed, table: 03_speed, minutes: 1e1, memory_gb: 2}]")
    (run,) = read_runs(file)
    assert (run.minutes, run.memory_gb) == (10.0, 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"notebook": "04_nothing"}, "notebook='04_nothing': allowed is one of 00_reference_model"),
        ({"notebok": 1}, "key='notebok': allowed is one of notebook, table"),
        ({"table": None}, "table=None: allowed is a table it saves"),
        ({"minutes": 0}, "minutes=0: allowed is a number above 0"),
        ({"gpus": 2}, "gpus=2: allowed is 0 or 1"),
        ({"threads": True}, "threads=True: allowed is a whole number above 0"),
        ({"threads": 0.5}, "threads=0.5: allowed is a whole number above 0"),
        ({"memory_gb": "8"}, "memory_gb='8': allowed is a number above 0"),
        ({"over": {"seed": 1}}, "seed=1: allowed is a list of values to try"),
        ({"over": [1]}, "over=[1]: allowed is a mapping from names of parameters"),
        ({"over": {1: [2]}}, "over={1: [2]}: allowed is a mapping"),
        ({"parameters": [1]}, "parameters=[1]: allowed is a mapping"),
        ({"over": {"sed": [1]}}, "unknown parameter sed; did you mean seed?"),
        ({"over": {"seed": ["__import__('os')"]}}, "parameter seed must be an int in [0..]"),
        ({"parameters": {"chunk_size": 0}}, "parameter chunk_size must be an int in [1..4096]"),
    ],
)
def test_mistakes_are_told_with_their_grid(tmp_path, change, told):
    with pytest.raises(ValueError, match=re.escape(f"sweep.yaml, grid 2: {told}")):
        runs_of(tmp_path, GRID, GRID | change)


@pytest.mark.parametrize("content", ["", "[]", "grids: []", "grids: 3"])
def test_a_file_without_grids_is_refused(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match="grids=.*: allowed is a list of grids, at least one"):
        read_runs(tmp_path / "a.yaml")


def test_a_python_tag_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "a.yaml").write_text(f"grids: !!python/object/apply:os.mkdir [{marker}]\n")
    with pytest.raises(
        yaml.constructor.ConstructorError, match="could not determine a constructor"
    ):
        read_runs(tmp_path / "a.yaml")
    assert not marker.exists()


def test_a_notebook_depends_on_what_it_reaches():
    reached = {path.stem: path for path in modules_of(NOTEBOOKS / "04_method_comparison.ipynb")}
    assert {"quality", "perplexity", "rope", "models", "h2o", "tables", "save"} <= reached.keys()
    assert not {"recall", "trainer", "chat", "papermill_plugin"} & reached.keys()


@pytest.mark.parametrize("notebook", all_notebooks(), ids=lambda notebook: notebook.stem)
def test_every_public_name_that_a_notebook_uses_is_reached(notebook):
    """Imported by name, or used as `lib.load_model`: by the words of its cells, whoever parses."""
    source = "\n".join(code_cells(notebook))
    homes = {module for name, module in lib._HOME.items() if re.search(rf"\b{name}\b", source)}
    files = {ROOT.joinpath("lib", *module.split(".")).with_suffix(".py") for module in homes}
    assert homes  # every notebook uses some
    assert {file for file in files if file.is_file()} <= set(modules_of(notebook))


def test_the_version_changes_with_the_text_and_the_model_that_are_named(tmp_path):
    notebook = NOTEBOOKS / "04_method_comparison.ipynb"
    text = tmp_path / "a.txt"
    text.write_text("one")
    first = version_of(notebook, [str(text), 3])
    assert first == version_of(notebook, [4, str(text)])
    assert first != version_of(notebook, ["reference", str(text)])
    assert first != version_of(NOTEBOOKS / "03_speed.ipynb", [str(text)])
    other = tmp_path / "b.txt"
    other.write_text("two")
    assert first != version_of(notebook, [str(other)])
