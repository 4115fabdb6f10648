"""A sweep on a real Slurm, Debian's, on this machine: workflow/slurm_local.sh."""

import json
import shutil
import time
from datetime import datetime

import pytest
from conftest import write_notebook
from test_sweep import rows_of, swept  # noqa: F401  the fixture

SPANS = """\
import time
from lib.paths import results_dir
began = time.time()
time.sleep(seconds)
tables = results_dir() / "tables"
tables.mkdir()
(tables / "05_spans.csv").write_text(f"began,ended\\n{began},{time.time()}\\n")"""

missing = [tool for tool in ("slurmctld", "slurmd", "munged") if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(bool(missing), reason="no Slurm: apt-get install slurm-wlm munge")


def test_two_at_once_and_one_ended_by_the_scheduler(swept):  # noqa: F811
    notebook = swept.root / "notebooks" / "05_spans.ipynb"
    write_notebook(notebook, SPANS, parameters="seconds: int = 20")
    grid = {"notebook": "05_spans", "table": "05_spans", "memory_gb": 1}
    swept.write(
        grid | {"minutes": 10},
        grid | {"minutes": 1, "parameters": {"seconds": 600}},
    )
    command = ["python", "-m", "lib.sweep", "sweep.yaml", "--profile", "workflow/slurm"]
    before = time.time()
    done = swept.call("workflow/slurm_local.sh", *command, timeout=900)
    assert done.returncode == 0, done.stderr
    good, ended = rows_of(swept.table())
    assert (good["status"], ended["status"]) == ("ok", "timeout")
    assert before < float(good["began"]) < float(good["ended"]) < time.time()
    # the log of the other says when it began; it had a minute
    log = next(swept.results.glob(f"sweep/logs/{ended['run']}-*.ipynb"))
    told = json.loads(log.read_text())["metadata"]["papermill"]["start_time"]
    began = datetime.fromisoformat(told).timestamp()
    assert float(good["began"]) < began + 60
    assert began < float(good["ended"])
