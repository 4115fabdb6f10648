"""Run notebooks headless, in order: `python -m lib.run [--params params/quick.yaml] [NB ...]`.

A notebook is named by its number (`03`), its name (`03_speed`) or its path; none named means all,
or those that the parameter file has sections for. The first notebook that fails ends the run; what
it and earlier runs left is as `lib/run/staging.py` says.
"""

import argparse
import importlib.util
import logging
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from lib.load.wheel import NOT_INSTALLED, PACKAGE, SMOLLM2
from lib.paths import all_notebooks
from lib.results.declared import missing_outputs

from . import params
from .staging import failed_copy_path, last_cell, staged_run


class NotebookError(RuntimeError):
    """A notebook that did not run to its end."""


def choose(names: list[str]) -> list[Path]:
    """The notebooks that `names` mean, in order; all of them for no names."""
    notebooks = all_notebooks()
    for name in names:
        if not any(_means(name, notebook) for notebook in notebooks):
            known = ", ".join(notebook.stem for notebook in notebooks)
            raise ValueError(f"no notebook {name} (notebooks: {known or 'none'})")
    return [nb for nb in notebooks if not names or any(_means(name, nb) for name in names)]


def _means(name: str, notebook: Path) -> bool:
    stem = Path(name).name.removesuffix(".ipynb")
    return stem == notebook.stem or stem == notebook.stem.split("_")[0]


def read_parameters(content: Any, notebooks: list[Path]) -> dict[Path, dict[str, Any]]:
    """Checked parameters of every notebook, so that a mistake shows before any of them runs."""
    checked = {}
    for notebook in notebooks:
        try:
            given = params.section(content, notebook.stem)
            checked[notebook] = params.check(params.read_contract(notebook), given)
        except ValueError as error:
            raise ValueError(f"{notebook.stem}: {error}") from error
    return checked


def run(notebook: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook; its results are replaced if it ran to its end and saved all it declares."""
    failed_copy = failed_copy_path(notebook)
    bar = {"leave": False} if sys.stderr.isatty() else False
    with staged_run(notebook, parameters) as copy:
        try:
            papermill.execute_notebook(notebook, copy, parameters, progress_bar=bar)
        except Exception as error:
            message = f"{_explain(notebook, copy, error)}\nThe failed copy: {failed_copy}"
            raise NotebookError(message) from error
        if missing := missing_outputs(notebook, copy.parent.parent):
            raise NotebookError(f"{notebook.stem} did not save {', '.join(missing)}")


def _explain(notebook: Path, copy: Path, error: Exception) -> str:
    """Which notebook, which cell, which line if that is known, and which error."""
    where = ""
    if cell := last_cell(copy):
        number, source = cell
        where = f" in cell {number} ({source})"
        if raised := _raising_line(error):
            where = f" in cell {number}, line {raised[0]} ({raised[1]})"
    what = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    return f"{notebook.stem} failed{where}\n{what}"


def _raising_line(error: Exception) -> tuple[int, str] | None:
    """Number and text of the cell's line that raised, if the traceback tells."""
    if not isinstance(error, PapermillExecutionError):
        return None
    traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))
    numbers = re.findall(rf"Cell In\[{error.exec_count}\], line (\d+)", traceback)
    if not numbers:
        return None
    line = int(numbers[-1])
    return line, error.source.splitlines()[line - 1].strip()


def run_all(
    notebooks: list[Path], parameters: dict[Path, dict[str, Any]], all_by_default: bool = False
) -> None:
    """Run notebooks in order with one line of progress each.

    Where nobody asked for anything but the defaults, one whose model can't be had is left out.
    """
    for number, notebook in enumerate(notebooks, start=1):
        begun = f"[{number}/{len(notebooks)}] {notebook.stem} ... "
        print(begun, end="", flush=True)
        if all_by_default and (missing := _missing_model(notebook)):
            print(f"left out: {missing}", flush=True)
            continue
        start = time.monotonic()
        run(notebook, parameters[notebook])
        # at a terminal the bar of cells stood here and is cleared
        again = f"\r{begun}" if sys.stdout.isatty() else ""
        print(f"{again}{time.monotonic() - start:.0f} s", flush=True)


def _missing_model(notebook: Path) -> str | None:
    """Why the model that a notebook takes by default can't be had, if so."""
    defaults = params.defaults_of(params.read_contract(notebook))
    if defaults.get("model") == SMOLLM2 and not importlib.util.find_spec(PACKAGE):
        return NOT_INSTALLED
    return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NB", help="number, name or path")
    parser.add_argument("--params", type=Path, help="parameter file, one section a notebook")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # end like Ctrl-C does: the kernel is stopped and the staging folder removed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        file = arguments.params
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
        names = arguments.notebooks or params.sections(content)
        notebooks = choose(names)
        by_default = not names and file is None
        run_all(notebooks, read_parameters(content, notebooks), by_default)
    except NotebookError as error:
        sys.exit(f"failed\n{error}")
    except (ValueError, OSError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
