"""Sweeps run for real: what fails is a row, what changed is run again, a kill loses nothing."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import yaml
from conftest import Sandbox, write_notebook

from lib.paths import ROOT

PARAMETERS = """\
ending: str = "good"  # how it ends [good | error | memory | sleep]
seed: int = 0  # of nothing"""
ENDS = """\
import time
if ending == "error":
    raise ValueError("a bad\\nnumber")
if ending == "memory":
    held = [bytearray(b"x" * 2**26) for _ in range(64)]
if ending == "sleep":
    time.sleep(300)"""
# without torch, which takes seconds to import
SAVE = """\
from lib.paths import results_dir
tables = results_dir() / "tables"
tables.mkdir()
(tables / "{}.csv").write_text(f"seed,ratio\\n{{seed}},0.333333\\n{{seed}},{{seed / 7:.6g}}\\n")"""


class Swept(Sandbox):
    """A sandbox that runs sweeps."""

    def write(self, *grids: dict, name: str = "sweep") -> str:
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump({"grids": list(grids)}))
        return f"{name}.yaml"

    def sweep(self, *arguments: str, **options):
        command = ("python", "-m", "lib.sweep", "sweep.yaml", *arguments)
        return self.call(*command, timeout=600, **options)

    def table(self, name: str = "sweep") -> str:
        return (self.results / "sweep" / f"{name}.csv").read_text()


@pytest.fixture
def swept(tmp_path):
    pytest.importorskip("snakemake")
    root = tmp_path / "repository"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("lib", "workflow"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    (root / "notebooks").mkdir()
    (root / "models").symlink_to(ROOT / "models")
    write_notebook(
        root / "notebooks" / "01_ends.ipynb", ENDS, SAVE.format("01_ends"), parameters=PARAMETERS
    )
    return Swept(root)


NUMBERS = ("01_", "02_", "03_", "04_")
GRID = {"notebook": "01_ends", "table": "01_ends", "minutes": 2, "memory_gb": 1.5}


def ran(done) -> list[str]:
    """What became of the runs that a sweep ran, sorted."""
    lines = [line.rpartition(",")[0] for line in done.stderr.splitlines() if line[:3] in NUMBERS]
    return sorted(line.split(": ", 1)[1] for line in lines)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_what_fails_is_a_row_with_its_reason(swept):
    swept.write(
        GRID | {"over": {"ending": ["good", "error", "memory"], "seed": [3]}},
        GRID | {"minutes": 0.25, "over": {"ending": ["sleep"]}},
    )
    done = swept.sweep("--cores", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 runs: 1 ok, 1 error, 1 oom, 1 timeout\n")
    rows = rows_of(swept.table())
    told = [(row["ending"], row["status"], row["ratio"]) for row in rows]
    assert told == [
        ("good", "ok", "0.333333"),
        ("good", "ok", "0.428571"),
        ("error", "error: ValueError: a bad number", ""),
        ("memory", "oom", ""),
        ("sleep", "timeout", ""),
    ]
    assert [row["seed_given"] for row in rows[:2]] == ["3", "3"]  # the table has a column `seed`
    # the log of a killed run shows how far it came
    logs = sorted((swept.results / "sweep" / "logs").glob("*.ipynb"))
    assert len(logs) == 4
    begun = [log for log in logs if "start_time" in log.read_text()]
    assert len(begun) == 4
    typed = pd.read_parquet(swept.results / "sweep" / "sweep.parquet")
    assert list(typed.columns) == list(rows[0])
    assert typed.ratio.dtype == float

    # failures are results, until they have other limits or are asked for again
    swept.write(
        GRID | {"over": {"ending": ["good", "error"], "seed": [3]}},
        GRID | {"memory_gb": 1.2, "over": {"ending": ["memory"], "seed": [3]}},
    )
    assert ran(swept.sweep()) == ["oom"]
    assert ran(swept.sweep("--retry", "--cores", "2")) == ["error: ValueError: a bad number", "oom"]


def test_what_changed_is_run_again_and_nothing_else(swept):
    uses = "from lib.require import require\n" + SAVE.format("02_uses")
    write_notebook(swept.root / "notebooks" / "02_uses.ipynb", uses, parameters="seed: int = 0")
    seeds = {"over": {"seed": [0, 1]}}
    swept.write(GRID | seeds, GRID | {"notebook": "02_uses", "table": "02_uses"} | seeds)

    def rerun() -> list[str]:
        done = swept.sweep("--cores", "2")
        assert done.returncode == 0, done.stderr
        return sorted(line[:7] for line in done.stderr.splitlines() if ": ok" in line)

    assert rerun() == ["01_ends"] * 2 + ["02_uses"] * 2
    for path in swept.root.glob("lib/**/*.py"):  # a new time is no change
        path.touch()
    for name in ("measure/chat.py", "run/params.py"):  # nothing here imports these
        module = swept.root / "lib" / name
        module.write_text(module.read_text() + "\n# a change\n")
    notebook = swept.root / "notebooks" / "02_uses.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "Hm."})
    notebook.write_text(json.dumps(content))
    assert rerun() == []
    module = swept.root / "lib" / "require.py"
    module.write_text(module.read_text() + "\n# a change\n")
    refused = swept.call("python", "-m", "lib.sweep.collect", "sweep.yaml")
    assert refused.returncode == 1
    assert "2 of 4 runs are not there; of 2 there are rows of another version" in refused.stderr
    assert "versions are not mixed in one table. `make sweep` runs" in refused.stderr
    assert rerun() == ["02_uses"] * 2
    content["cells"][-2]["source"] += "\n1"
    notebook.write_text(json.dumps(content))
    swept.write(
        GRID | {"over": {"seed": [1, 2]}}, GRID | {"notebook": "02_uses", "table": "02_uses"}
    )
    assert rerun() == ["01_ends", "02_uses"]
    (rows,) = (swept.results / "sweep" / "runs").glob(f"{rows_of(swept.table())[0]['run']}-*.csv")
    rows.write_text(rows.read_text().replace(rows.stem.rsplit("-", 1)[1], "01234567"))
    refused = swept.call("python", "-m", "lib.sweep.collect", "sweep.yaml")
    assert f"{rows.name} was made by version 01234567" in refused.stderr


EVALUATES = """\
from lib import StreamingLLM, evaluate, load_model, load_tokens, save_table
import pandas as pd
import time
model, tokenizer = load_model("reference", device="cpu")
tokens = load_tokens("docs", tokenizer, max_tokens=400)
began = time.time()
result = evaluate(model, tokens, StreamingLLM(4, recent))
row = {"ppl": [result.ppl], "accuracy": [result.accuracy], "seconds": [time.time() - began]}
save_table(pd.DataFrame(row), "03_evaluates")"""
AFTER = "import time\ntime.sleep(1)"


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 of a sweep with everything it has started."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        if one.is_running():
            one.kill()
    process.wait()


def test_five_kills_change_no_byte_of_quality(swept, tmp_path):
    notebook = swept.root / "notebooks" / "03_evaluates.ipynb"
    write_notebook(notebook, EVALUATES, AFTER, parameters="recent: int = 8")
    over = {"over": {"recent": [8, 16, 24]}}
    swept.write({"notebook": "03_evaluates", "table": "03_evaluates"} | over)
    environment = swept.environment() | {"KVLAB_RESULTS": str(tmp_path / "undisturbed")}
    done = swept.sweep(env=environment)
    assert done.returncode == 0, done.stderr
    home = swept.results / "sweep"

    def count(pattern: str) -> int:
        return len(list(home.glob(pattern)))

    moments = [
        lambda: count(".snakemake"),
        lambda: count("logs/*.ipynb"),
        lambda: count("runs/*/.staging-*/tables/*.csv"),
        lambda: count("runs/*.csv"),
        lambda: count("runs/*.csv") > 1 and count("logs/*.ipynb") > 2,
    ]
    kept = {}
    for moment in moments:
        command = [sys.executable, "-m", "lib.sweep", "sweep.yaml", "--cores", "1"]
        process = subprocess.Popen(command, cwd=swept.root, env=swept.environment())
        while not moment():
            assert process.poll() is None
            time.sleep(0.02)
        kill_all(process)
        rows = {path.name: path.read_bytes() for path in home.glob("runs/*.csv")}
        assert kept.items() <= rows.items()  # what was there stays as it was
        kept = rows
        assert all(text.endswith(b"\n") and text.count(b"\n") == 2 for text in rows.values())
    assert len(kept) == 2
    done = swept.sweep()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": ok") == 1
    undisturbed = (tmp_path / "undisturbed" / "sweep" / "sweep.csv").read_text()
    quality = [
        [{name: row[name] for name in row if name != "seconds"} for row in rows_of(text)]
        for text in (undisturbed, swept.table())
    ]
    assert quality[0] == quality[1]
    assert len(quality[0]) == 3
    assert {row["status"] for row in quality[0]} == {"ok"}


def test_two_sweeps_at_once_lose_nothing(swept):
    swept.write(GRID | {"over": {"seed": [0, 1]}})
    swept.write(GRID | {"over": {"seed": [1, 2]}}, name="other")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lib.sweep", f"{name}.yaml"],
            cwd=swept.root,
            env=swept.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("sweep", "other")
    ]
    told = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert sum(text.count(": ok") for text in told) == 3  # the shared run once
    assert sum("another sweep runs in" in text for text in told) == 1
    for name in ("sweep", "other"):
        assert [row["status"] for row in rows_of(swept.table(name))] == ["ok"] * 4


def test_runs_at_once_write_one_place_and_lose_nothing(swept):
    """Without the lock, as on machines that share a disk: the same run twice."""
    swept.write(GRID)
    list_runs = "from lib.sweep.grid import read_runs; from pathlib import Path; "
    list_runs += "print(read_runs(Path('sweep.yaml'))[0].id)"
    run = swept.call("python", "-c", list_runs).stdout.strip()
    command = [sys.executable, "-m", "lib.sweep.execute", "sweep.yaml", run]
    options = {"cwd": swept.root, "env": swept.environment()}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    assert swept.call("python", "-m", "lib.sweep.collect", "sweep.yaml").returncode == 0
    assert [row["status"] for row in rows_of(swept.table())] == ["ok"] * 2


TELLS = """\
import os, time
from lib.paths import results_dir
began = time.time()
time.sleep(4)
tables = results_dir() / "tables"
tables.mkdir()
row = f"{os.environ['CUDA_VISIBLE_DEVICES']},{began},{time.time()}"
(tables / "04_tells.csv").write_text(f"device,began,ended\\n{row}\\n")"""


def test_one_run_a_gpu(swept):
    """Two devices that only have names, four runs, cores enough for all at once."""
    notebook = swept.root / "notebooks" / "04_tells.ipynb"
    write_notebook(notebook, TELLS, parameters="seed: int = 0")
    over = {"gpus": 1, "over": {"seed": [0, 1, 2, 3]}}
    swept.write({"notebook": "04_tells", "table": "04_tells"} | over)
    environment = swept.environment() | {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}
    done = swept.sweep("--cores", "4", env=environment)
    assert done.returncode == 0, done.stderr
    rows = rows_of(swept.table())
    assert {row["device"] for row in rows} == {"GPU-a", "GPU-b"}
    spans = [(row["device"], float(row["began"]), float(row["ended"])) for row in rows]
    for device, began, ended in spans:
        for other, start, stop in spans:
            same = (other, start) != (device, began) and other == device
            assert not (same and start < ended and began < stop)
    pairs = [(a, b) for a in spans for b in spans if a[0] < b[0]]
    assert any(a[1] < b[2] and b[1] < a[2] for a, b in pairs)  # both were in use at once


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("grids: [{notebook: 09_none, table: a}]", "grid 1: notebook='09_none': allowed is one of"),
        ("grids: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
        ("grids: [", "while parsing"),
        (None, "No such file or directory: 'sweep.yaml'"),
    ],
)
def test_a_bad_file_is_told_in_a_line_before_anything_runs(swept, content, told):
    if content:
        (swept.root / "sweep.yaml").write_text(content)
    done = swept.sweep()
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (swept.root / "ran").exists()
