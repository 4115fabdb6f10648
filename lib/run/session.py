"""What `import lib` does in an open notebook: parameters checked, results kept apart, errors short.

- The parameters cell holds its contract (`params.py`): its values are checked when lib is imported,
  and again whenever the cell is run, as they are under papermill.
- Figures and tables go to `results/interactive/`, which git ignores, unless `KVLAB_RESULTS` says
  where: trying something out replaces no result.
- In a dark theme pictures are dark.
- A value that lib refuses, or a file that it does not find, is told in one sentence; `%tb` shows
  where it came from.
"""

import ast
import os
import sys
from pathlib import Path

from IPython.display import display

from lib.paths import ROOT, headless

from . import params

LIB = ROOT / "lib"
# pictures are white; in a dark theme they are turned, hues kept
DARK = """<style>
body[data-jp-theme-light="false"] :is(.jp-RenderedImage, .jp-RenderedHTML) > img,
body.vscode-dark .output img
{ filter: invert(0.88) hue-rotate(180deg); }
</style>"""
TOLD = (ValueError, OSError)  # how lib refuses a value, and says what is missing


def install(shell) -> None:
    """Set up the IPython `shell` of a notebook's kernel; ParameterError if its values are wrong."""
    if not headless():
        os.environ.setdefault("KVLAB_RESULTS", str(ROOT / "results" / "interactive"))
        display({"text/html": DARK, "text/plain": ""}, raw=True)
    shell.set_custom_exc(TOLD, tell)
    shell.ast_transformers.append(Checker(shell))
    check_namespace(shell.user_ns)


def check_namespace(namespace: dict) -> None:
    """Check what the last parameters cell that was run has named, as it is now."""
    for source in reversed(namespace.get("In", [])):
        if is_contract(source):
            for parameter in params.parse_contract(source):
                if parameter.name in namespace:
                    parameter.check(namespace[parameter.name])
            return


def is_contract(source: str) -> bool:
    """Whether a cell has lines `name: type = value  # meaning`, most of them at least.

    One that has lost its type or meaning is refused with the cell, not passed over.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic, or a mistake that Python itself will tell of
        return False
    typed = sum(isinstance(x, ast.AnnAssign) for x in body)
    plain = sum(isinstance(x, ast.Assign) for x in body)
    return "#" in source and typed > plain and typed + plain == len(body)


class Checker(ast.NodeTransformer):
    """Lets a parameters cell with a wrong value raise in place of setting it."""

    def __init__(self, shell):
        self.shell = shell

    def visit_Module(self, node: ast.Module) -> ast.Module:
        source = self.shell.user_ns["In"][-1]
        if is_contract(source) and ast.dump(ast.parse(source)) == ast.dump(node):
            try:
                params.parse_contract(source)
            except ValueError as error:
                told = (
                    f"raise __import__('lib.run.params').run.params.ParameterError({str(error)!r})"
                )
                node.body = ast.parse(told).body
        return node


def tell(shell, kind, error, trace, tb_offset=None) -> list[str] | None:
    """Show an error that lib raised as a sentence, and any other one as IPython does."""
    frames, inner = [], trace
    while inner is not None:
        frames.append(inner)
        inner = inner.tb_next
    cell = [x for x in frames if x.tb_frame.f_globals is shell.user_ns]
    ours = Path(frames[-1].tb_frame.f_code.co_filename).is_relative_to(LIB)
    if not (cell and (ours or isinstance(error, params.ParameterError))):
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %tb
    where = (
        f"Cell In[{len(shell.user_ns['In']) - 1}], line {cell[-1].tb_lineno}; {params.SHORTENED}"
    )
    lines = [f"{kind.__name__}: {error}", f"({where})"]
    shell._showtraceback(kind, error, lines)
    return lines
