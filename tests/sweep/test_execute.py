"""How a run ends, and what is written of it, without a kernel."""

import os
import subprocess
import sys

import pandas as pd
import papermill
import pytest
import torch
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from lib.results.manifest import add_to_manifest, read_manifest
from lib.sweep import limits
from lib.sweep.collect import collect, summary
from lib.sweep.execute import _reason, _with_run, execute
from lib.sweep.grid import read_runs
from lib.sweep.limits import Limits, devices, one_gpu


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    (tmp_path / "a.yaml").write_text("grids: [{notebook: 03_speed, table: 03_speed, minutes: 1}]")
    (run,) = read_runs(tmp_path / "a.yaml")
    run.log.parent.mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    ("attempt", "note", "status"),
    [
        (2, "timeout", "timeout"),
        (3, "timeout", "timeout"),
        (2, "error: ended from outside after 9 s", "error: ended from outside after 9 s"),
        (3, None, "error: ended 2 times without rows: killed, or they can't be written"),
    ],
)
def test_what_a_killed_attempt_left_becomes_a_row(run, attempt, note, status):
    killed = run.log.with_suffix(".killed")
    if note:
        killed.write_text(note)
    execute(run, attempt)
    (row,) = pd.read_csv(run.rows).to_dict("records")
    assert (row["status"], row["version"], row["minutes"]) == (status, run.version, 1)
    assert not killed.exists()


def test_a_job_that_slurm_calls_failed_for_memory_is_the_same_row_when_tried_again(
    run, monkeypatch
):
    """Slurm may call a job failed in which it has killed, though the row was written."""
    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr("lib.sweep.execute._reason", lambda error: "oom")
    execute(run, 1, scheduled=True)
    run.rows.unlink()  # Snakemake drops what a failed job has written
    monkeypatch.setattr(papermill, "execute_notebook", pytest.fail)
    execute(run, 2, scheduled=True)
    assert pd.read_csv(run.rows).status.tolist() == ["oom"]


def cell_error(name: str, said: str) -> PapermillExecutionError:
    return PapermillExecutionError(0, 1, "source", name, said, [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (cell_error("OutOfMemoryError", "CUDA out of memory. Tried to allocate 9 GiB"), "oom"),
        (cell_error("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you"), "oom"),
        (cell_error("MemoryError", ""), "oom"),
        (cell_error("ValueError", "a bad\n  number"), "error: ValueError: a bad number"),
        (OSError("no kernel"), "error: OSError: no kernel"),
    ],
)
def test_reasons(error, reason):
    assert _reason(error) == reason


GROWS = "held = bytearray(b'x' * 300_000_000); import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("memory_gb", "minutes", "program", "reason", "signal"),
    [
        (0.2, None, GROWS, "oom", -9),
        (4, 0.01, "import time; time.sleep(60)", "timeout", -9),
        (4, 1, "pass", None, 0),
    ],
)
def test_limits_kill_what_was_started(memory_gb, minutes, program, reason, signal):
    with Limits(memory_gb, minutes) as held:
        process = subprocess.Popen([sys.executable, "-c", program])
        assert process.wait(timeout=120) == signal
    assert held.reason == reason


@pytest.mark.parametrize(
    ("counts", "error", "status"),
    [
        ((3, 3), DeadKernelError("Kernel died"), "error: DeadKernelError: Kernel died"),
        ((3, 4), DeadKernelError("Kernel died"), "oom"),
        # the system has killed another run of the same control group
        ((3, 4), cell_error("ValueError", "bad"), "error: ValueError: bad"),
    ],
)
def test_the_systems_own_killer_is_told_by_its_count(run, monkeypatch, counts, error, status):
    """The count of the control group has grown while the notebook's kernel died."""
    counts = iter(counts)
    monkeypatch.setattr(limits, "_killed_for_memory", lambda: next(counts))

    def ended(*args, **kwargs):
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", ended)
    execute(run, 1)
    assert pd.read_csv(run.rows).status.tolist() == [status]


def test_a_run_without_gpus_sees_none(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    monkeypatch.setattr(
        papermill,
        "execute_notebook",
        lambda *args, **kwargs: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]),
    )
    execute(run, 1)
    assert seen == [""]


def test_the_count_is_read_from_the_control_group(monkeypatch, tmp_path):
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n0::/a/b\n")
    (tmp_path / "fs" / "a" / "b").mkdir(parents=True)
    (tmp_path / "fs" / "a" / "b" / "memory.events").write_text("low 1\noom 9\noom_kill 5\n")
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "CGROUP_FILES", tmp_path / "fs")
    assert limits._killed_for_memory() == 5
    (tmp_path / "fs" / "a" / "b" / "memory.events").unlink()
    assert limits._killed_for_memory() == 0
    # version 1, beside an empty tree of version 2
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n4:memory:/a\n0::/\n")
    (tmp_path / "fs" / "memory" / "a").mkdir(parents=True)
    told = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
    (tmp_path / "fs" / "memory" / "a" / "memory.oom_control").write_text(told)
    assert limits._killed_for_memory() == 3


def test_rows_say_on_what_device_and_the_merged_table_what_made_them(run, tmp_path):
    (run.folder / "tables").mkdir(parents=True)
    (run.folder / "tables" / "03_speed.csv").write_text("method,tpot_ms\na,1.5\n")
    made = {"caption": "", "notebook": "03_speed", "models": [{"device": "cuda:0"}], "commit": "c"}
    add_to_manifest(run.folder, {"tables/03_speed.csv": made})
    rows = pd.DataFrame({"status": ["ok"], "method": ["a"], "tpot_ms": ["1.5"]})
    _with_run(rows, run).to_csv(run.rows, index=False)
    table = collect(tmp_path / "a.yaml")
    assert table.device.tolist() == ["cuda:0"]
    entries = read_manifest(tmp_path / "sweep")
    assert entries["a.csv"]["rows_of"] == [f"runs/{run.rows.name}"]
    assert entries["a.csv"]["caption"] == "1 runs: 1 ok"
    assert entries[f"runs/{run.rows.name}"] == made


def test_a_real_allocation_beyond_memory_is_told_as_such():
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert _reason(error.value) == "oom"


def test_gpus_are_dealt_out_one_to_a_run(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-a, test-b")
    taken = []
    with one_gpu():
        taken += devices()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-a,test-b")
        with one_gpu():
            taken += devices()
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-a,test-b")
            with (
                pytest.raises(RuntimeError, match="no GPU is free out of test-a, test-b"),
                one_gpu(),
            ):
                pass
    assert taken == ["test-a", "test-b"]
    with one_gpu():  # both are free again
        assert devices() == ["test-a"]


def test_gpus_are_counted_as_cuda_does(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(limits, "GPU_FILES", tmp_path)
    for name in ("nvidia3", "nvidia12", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert devices() == ["0", "1"]


def test_the_summary_counts_runs_and_not_rows():
    table = pd.DataFrame(
        {"run": list("aabcd"), "status": ["ok", "ok", "oom", "error: a", "error: b"]}
    )
    assert summary(table) == "4 runs: 1 ok, 2 error, 1 oom"
