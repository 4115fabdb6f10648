"""How a run ends, and what is written of it, without a kernel."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from papermill.exceptions import PapermillExecutionError

from lib.sweep.collect import summary
from lib.sweep.execute import _reason, execute
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
        (3, None, "error: killed 2 times from outside, without a warning"),
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
    with Limits(memory_gb, minutes) as limits:
        process = subprocess.Popen([sys.executable, "-c", program])
        assert process.wait(timeout=120) == signal
    assert limits.reason == reason


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


def test_the_summary_counts_runs_and_not_rows():
    table = pd.DataFrame(
        {"run": list("aabcd"), "status": ["ok", "ok", "oom", "error: a", "error: b"]}
    )
    assert summary(table) == "4 runs: 1 ok, 2 error, 1 oom"
