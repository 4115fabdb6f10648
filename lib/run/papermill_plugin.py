"""Makes `papermill notebooks/03_speed.ipynb -p cache 512`, typed just so, run a notebook.

papermill loads the `papermill.engine` entry points before it parses its arguments, and this module
is one. For a notebook of this repository's notebooks/ folder, and for no other, it adds:

- A default output path. The executed copy goes to `results/notebooks/03_speed.ipynb` at a terminal,
  in a script and with a pipe on stdin alike, from any working directory. (papermill alone demands
  an output path, prints the notebook, or reads one from the pipe.) A given output path, `-` too,
  keeps its meaning.
- No good copy is lost. The run's files are staged (`staging.py`), also those of
  `papermill.execute_notebook`; if it fails, the earlier ones stay and the failed copy is kept as
  `results/notebooks/03_speed.failed.ipynb`.
- A check of the parameters (`params.py`) before a kernel starts and before anything is written,
  for `-p`, `-r`, `-y`, `-f` and `-b`, and for `papermill.execute_notebook`.
- Sections in parameter files. Of `-f params/quick.yaml` a notebook takes its own section, the key
  `03_speed`; a file without such keys is taken as it is.

Import papermill, not this module: it needs papermill's engines to exist.
"""

import base64
import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

from lib.paths import NOTEBOOKS, all_notebooks, headless, results_dir

from . import params, staging

papermill_log = logging.getLogger("papermill")
# a kernel slow to end is interrupted, and would say so in the midst of our lines
QUIET = [
    "--IPKernelApp.log_level=50",
    "--IPKernelApp.exec_lines=__import__('logging').getLogger('tornado').setLevel(50)",
]


class ContractEngine(NBClientEngine):
    """papermill's own engine, behind a check of the parameters of this repository's notebooks."""

    @classmethod
    def execute_notebook(cls, nb, kernel_name, input_path=None, **kwargs):
        ours = input_path is not None and staging.is_ours(input_path)
        if ours:
            nb = _with_checked_parameters(nb, kernel_name, Path(input_path))
            # `python3` is this environment's Python, whatever kernels the user has registered
            os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
            # a kernel on a plain connection begins every run with a warning
            kwargs.setdefault("config", Config(KernelManager={"transport_encryption": "auto"}))
            kwargs.setdefault("extra_arguments", QUIET)
        execute = partial(super().execute_notebook, nb, kernel_name, input_path=input_path)
        if ours and not headless():  # called from Python: not staged yet
            return _execute_staged(execute, Path(input_path), nb, kwargs)
        return execute(**kwargs)


# papermill registers the entry point by name; runs that name no engine use the one under None
papermill_engines.register(None, ContractEngine)


class _Failed(Exception):
    """A cell raised, which papermill tells once the engine has returned."""


def _execute_staged(execute: Callable, notebook: Path, nb, options: dict[str, Any]):
    """Run with the files staged, which a failed run discards."""
    parameters = dict(nb.metadata.papermill.parameters)
    given = {name: parameters[name] for name in parameters if not name.startswith("PAPERMILL_")}
    try:
        with staging.staged_run(notebook, given):
            executed = execute(**options)
            if executed.metadata.papermill.get("exception"):
                raise _Failed
    except _Failed:
        pass
    return executed


def _with_checked_parameters(nb, kernel_name: str, notebook: Path):
    """`nb` with its injected cell written anew from the checked values."""
    from papermill.parameterize import parameterize_notebook  # it imports papermill.engines

    given = dict(nb.metadata.papermill.parameters)
    paths = {name: given.pop(name) for name in list(given) if name.startswith("PAPERMILL_")}
    checked = params.check(params.read_contract(notebook), given)
    if not checked:
        return nb
    return parameterize_notebook(nb, paths | checked, kernel_name=kernel_name)


def _install(cli: ModuleType) -> None:
    """Put the check, the default output path and the staging in front of papermill's command."""
    command = cli.papermill
    run_papermill = command.callback

    def run(notebook_path: str | None, output_path: str, **options: Any) -> None:
        ours = notebook_path is not None and staging.is_ours(notebook_path)
        if notebook_path is not None and not ours:
            _refuse_misspelt(Path(notebook_path))
        if not ours or options["help_notebook"]:
            return run_papermill(notebook_path=notebook_path, output_path=output_path, **options)
        notebook = Path(notebook_path)
        _check_places(notebook, output_path, options)
        checked, options = _check_options(cli, notebook, options)
        if options["prepare_only"]:  # nothing is run, so no result is replaced
            return run_papermill(notebook_path=notebook_path, output_path=output_path, **options)
        return _run_staged(run_papermill, notebook, output_path, options, checked)

    command.callback = run


def _refuse_misspelt(path: Path) -> None:
    """Name the notebook that was meant, if `path` is none of this repository's."""
    if path.exists():
        return
    names = [found.name for found in all_notebooks()]
    if path.resolve().parent == NOTEBOOKS:
        raise _refusal(f"no notebook {params.suggest(path.name, names, 'notebooks')}")
    if difflib.get_close_matches(path.name, names, 1, 0.8):  # one of ours, in another place
        paths = [f"{NOTEBOOKS.name}/{name}" for name in names]
        raise _refusal(f"no notebook {params.suggest(str(path), paths, 'notebooks')}")


def _check_places(notebook: Path, output_path: str, options: dict[str, Any]) -> None:
    """Refuse what papermill would tell late, by a traceback: output path and kernel."""
    if options["prepare_only"] and not output_path:
        raise _refusal(f"--prepare-only needs an output path: {notebook} OUTPUT.ipynb")
    folder = Path(output_path).parent
    if output_path and "://" not in output_path and not folder.is_dir():
        raise _refusal(f"output path {output_path}: there is no folder {folder}")
    kernel, known = options.get("kernel"), KernelSpecManager().find_kernel_specs()
    if kernel and kernel not in known:
        raise _refusal(f"no kernel {params.suggest(kernel, sorted(known), 'kernels')}")


def _check_options(
    cli: ModuleType, notebook: Path, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checked parameters, and the options with all the ways to give them replaced by one."""
    try:
        given = _given_parameters(cli, notebook.stem, options)
        checked = params.check(params.read_contract(notebook), given)
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise _refusal(f"{notebook.name}: {error}{_hint(error, options)}") from error
    encoded = base64.b64encode(yaml.safe_dump(checked, sort_keys=False).encode())
    emptied = dict.fromkeys(("parameters", "parameters_raw", "parameters_file", "parameters_yaml"))
    return checked, options | emptied | {"parameters_base64": (encoded,) if checked else ()}


def _hint(error: Exception, options: dict[str, Any]) -> str:
    """What to type instead where `-r`, which gives text, gave a number."""
    for name, value in options["parameters_raw"]:
        if str(error).startswith(f"parameter {name} "):
            return f" (-r gives text as it stands: -p {name} {value})"
    return ""


def _given_parameters(cli: ModuleType, stem: str, options: dict[str, Any]) -> dict[str, Any]:
    """Parameters from all options, read in papermill's order: the later ones win."""

    def read(text: str | bytes) -> dict[str, Any]:
        return params.section(yaml.load(text, Loader=cli.NoDatesSafeLoader), stem)

    given: dict[str, Any] = {}
    for encoded in options["parameters_base64"]:
        given |= read(base64.b64decode(encoded))
    for path in options["parameters_file"]:
        given |= read(Path(path).read_text(encoding="utf-8"))
    for text in options["parameters_yaml"]:
        given |= read(text)
    given |= {name: cli._resolve_type(value) for name, value in options["parameters"]}
    return given | dict(options["parameters_raw"])


def _refusal(message: str) -> click.ClickException:
    """An error that click shows as one line."""
    error = click.ClickException(message)
    error.exit_code = 2
    return error


def _run_staged(
    run_papermill: Callable[..., None],
    notebook: Path,
    output_path: str,
    options: dict[str, Any],
    checked: dict[str, Any],
) -> None:
    final = os.path.relpath(staging.copy_path(notebook))  # before the results folder is another
    try:
        with staging.staged_run(notebook, checked) as copy:
            output = output_path or str(copy)
            papermill_log.addFilter(partial(_name_final, str(copy), final))
            run_papermill(notebook_path=str(notebook), output_path=output, **options)
    except Exception as error:
        failed_copy = output_path or os.path.relpath(staging.failed_copy_path(notebook))
        note = f"Earlier results are untouched; the failed copy is {failed_copy}"
        if params.SHORTENED in "".join(getattr(error, "traceback", [])):
            said = f"{notebook.name}: {error.ename}: {error.evalue}"
            raise click.ClickException(f"{said}\n{note}") from error
        if isinstance(error, OSError):  # of the files: what a cell raises comes as papermill's
            raise click.ClickException(f"{notebook.name}: {error}") from error
        error.add_note(note)
        raise
    saved = output_path or final
    click.echo(f"Saved {saved}; figures and tables: {os.path.relpath(results_dir())}", err=True)


def _name_final(staged: str, final: str, record: logging.LogRecord) -> bool:
    """Let papermill's log name the place where the copy will be, not the one that it comes from."""
    told = record.getMessage().replace(staged, final).replace(os.path.relpath(staged), final)
    record.msg, record.args = told, ()
    return True


class _PapermillCli(MetaPathFinder):
    """Finds papermill.cli, which papermill imports after its engines, and installs into it."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != "papermill.cli":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_install(module: ModuleType) -> None:
            execute(module)
            _install(module)

        spec.loader.exec_module = execute_and_install
        return spec


sys.meta_path.insert(0, _PapermillCli())
