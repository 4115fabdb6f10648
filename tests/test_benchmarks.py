"""The benchmarks begin, and the one whose numbers stand on pages runs to its end."""

import os
import runpy
import subprocess
import sys

import pandas as pd
import pytest

from lib.experiments.method_comparison.literature import LITERATURE
from lib.load.docstrings import docs_text
from lib.paths import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_all_that_they_import_is_there(script):
    assert "main" in runpy.run_path(str(script), run_name="imported")


def test_other_texts(tmp_path):
    """Ten thousand characters of a file: a row for each way, and shares of heads."""
    text = tmp_path / "text.txt"
    text.write_text(docs_text()[:10_000], encoding="utf-8")
    sizes = {"model": "reference", "cache": 16, "length": 128, "num-texts": 2, "samples": 2}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "benchmarks" / "texts.py", f"own={text}", *options]
    results = os.environ | {"KVLAB_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(command, env=results, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ways = pd.read_csv(tmp_path / "results" / "tables" / "texts.csv").set_index("method")
    assert list(ways.index) == ["baseline", "recent_only", "streaming", "recompute (sample)"]
    assert (ways.text == "own").all()
    assert ways.ratio["streaming"] == 1
    assert ways.ratio["recent_only"] > 1
    heads = pd.read_csv(tmp_path / "results" / "tables" / "texts_sinks.csv")
    assert heads["heads_%"].between(1, 50).all()
    reported = pd.read_csv(tmp_path / "results" / "tables" / "texts_literature.csv")
    assert len(reported) == len(LITERATURE)
    assert (reported.verdict != "not run").all()
