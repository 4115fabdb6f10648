"""Fixtures shared by the tests."""

import os

# Before torch is imported, by whatever test: tiny models are slower on several threads, and
# processes side by side wait for each other. What the tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pty
import shutil
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from lib.paths import ROOT

pytest.register_assert_rewrite("explorer_visits")  # what fails there is told as in a test

PARAMETERS = """\
cache: int = 64  # tokens kept [1..1024]
model: str = "reference"  # a model's name
positions: str = "in_cache"  # how distances are counted [in_cache | original]
lengths: list[int] = [128]  # context lengths [1..4096]"""
SAVE = """\
import pandas as pd
from lib import save_table
save_table(pd.DataFrame({"cache": [cache], "ratio": [1 / 3]}), "small", "A small table.")"""


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of a parameters cell and the given code cells."""
    kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
    notebook.metadata["language_info"] = {"name": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    nbformat.write(notebook, path)
    return path


def at_terminal(command: list[str], **options) -> tuple[int, str]:
    """Run a command at a pseudo-terminal: its exit code and all that it shows."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, **options)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # how Linux tells that the other side is closed
        pass
    os.close(master)
    return process.wait(timeout=120), shown.decode(errors="replace")


@dataclass
class Sandbox:
    """A copy of the library with notebooks of its own, which its commands find."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    def notebook(self, name: str, *cells: str) -> Path:
        return write_notebook(self.root / "notebooks" / f"{name}.ipynb", *cells)

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name != "KVLAB_RESULTS"}
        # the scripts of this Python come first, as in an activated environment
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return ours | {"PYTHONPATH": str(self.root), "PATH": path}

    def call(self, *command: str, **options) -> subprocess.CompletedProcess:
        """Run a command here and capture its text; stdin is empty unless given."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        options = {"cwd": self.root, "env": self.environment(), "timeout": 120} | options
        return subprocess.run(command, capture_output=True, text=True, **options)

    def files(self) -> dict[str, bytes]:
        """Everything in the results folder, by path."""
        files = (path for path in self.results.rglob("*") if path.is_file())
        return {str(path.relative_to(self.results)): path.read_bytes() for path in files}


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A sandbox with no notebooks yet."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "lib", root / "lib")
    (root / "notebooks").mkdir()
    return Sandbox(root)
