"""Save tables and figures, whole files only, and enter them in the manifest.

A table is saved whole as CSV and, to be read, as Markdown; a figure as PNG and as SVG. The manifest
says which notebook made it, with what parameters and caption and on what machine. A crash leaves
the earlier file.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import psutil
import torch
from matplotlib.figure import Figure

from lib.names import NAME_COLUMNS, display_names
from lib.paths import atomic_path, results_dir
from lib.plots import interval_of

from .manifest import add_to_manifest

# A fixed salt and no date: the same figure is the same file.
matplotlib.rcParams["svg.hashsalt"] = "kv-lab"


def save_table(df: pd.DataFrame, name: str, caption: str = "") -> None:
    """Write `tables/<name>.csv`, all of it, and `.md`, `readable` under its caption; no index."""
    folder, caption = results_dir() / "tables", " ".join(caption.split())
    with atomic_path(folder / f"{name}.csv") as path:
        df.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    with atomic_path(folder / f"{name}.md") as path:
        above = f"{caption} {_note_on(df, name)}".strip()
        path.write_text(f"{above}\n\n{to_markdown(df)}\n", encoding="utf-8")
    _note(f"tables/{name}.csv", caption)


def save_figure(fig: Figure, name: str, caption: str = "") -> None:
    """Write `figures/<name>.png` and `.svg`."""
    folder = results_dir() / "figures"
    with atomic_path(folder / f"{name}.png") as path:
        fig.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    with atomic_path(folder / f"{name}.svg") as path:
        fig.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    _note(f"figures/{name}.png", " ".join(caption.split()))


def to_markdown(df: pd.DataFrame) -> str:
    """A `readable` table in Markdown, numbers to the right, less the counts `_note_on` tells."""
    df = df.drop(columns=list(_same_counts(df)))
    shown = readable(df)
    numeric = [pd.api.types.is_numeric_dtype(df[column]) for column in shown.columns]
    align = ["right" if is_number else "left" for is_number in numeric]
    return shown.to_markdown(index=False, disable_numparse=True, colalign=align)


def readable(df: pd.DataFrame) -> pd.DataFrame:
    """A table as text for a page: methods by their display names, three significant digits.

    A number and its interval stand in one cell, `15.7 (11.7 to 21.8)`; quartiles in brackets.
    """
    spreads = {column: interval_of(df, column) for column in df.columns}
    ends = {end for spread in spreads.values() for end in spread}
    cells = {}
    for column in spreads:
        if column not in ends:
            values = zip(*(df[name] for name in (column, *spreads[column])), strict=True)
            cells[column] = [
                _cell(*value, quartiles=_quartiles(spreads[column])) for value in values
            ]
        if column in NAME_COLUMNS:
            cells[column] = [display_names(str(cell), column) for cell in cells[column]]
    return pd.DataFrame(cells)


def _note_on(df: pd.DataFrame, name: str) -> str:
    """A sentence for the line above a table: what all rows share, what stands in its cells."""
    notes = [f"All digits: `{name}.csv`"]
    notes += [f"{column} = {count}" for column, count in _same_counts(df).items()]
    spreads = [spread for spread in (interval_of(df, column) for column in df.columns) if spread]
    quartiles = {_quartiles(spread) for spread in spreads}
    notes += ["in parentheses: 95% intervals"] if False in quartiles else []
    notes += ["in brackets: quartiles"] if True in quartiles else []
    return f"{'; '.join(notes)}."


def _same_counts(df: pd.DataFrame) -> dict[str, int]:
    """Counts behind the numbers, `n` and `n_...`, that are the same in all of several rows."""
    counts = [x for x in df.columns if re.fullmatch(r"n(_\w+)?", str(x)) and len(df) > 1]
    return {x: int(df[x].dropna().iloc[0]) for x in counts if df[x].nunique() == 1}


def _quartiles(spread: list[str]) -> bool:
    """Whether the columns of an `interval_of` are quartiles."""
    return bool(spread) and spread[0].endswith("_q1")


def _cell(value: Any, *ends: float, quartiles: bool = False) -> Any:
    """A value as text, with the ends of its interval; more digits where these would look alike."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if not ends or any(pd.isna(end) for end in ends):
        return _short(value)
    for digits in (3, 4, 5, 6, 3):  # three where the ends are alike in all
        number, low, high = (_short(float(x), digits) for x in (value, *ends))
        if low != high:
            break
    return f"{number} [{low} to {high}]" if quartiles else f"{number} ({low} to {high})"


def _short(value: Any, digits: int = 3) -> Any:
    """A float as text with so many significant digits, in plain notation up to a billion.

    Whole numbers keep all of theirs.
    """
    if not isinstance(value, float):
        return value
    whole = value.is_integer() and abs(value) < 1e9
    rounded = value if whole else float(f"{value:.{digits}g}")
    return f"{rounded + 0.0:.10g}"  # no -0


def _note(file: str, caption: str) -> None:
    """Enter one file in the manifest."""
    entry = {
        "caption": caption,
        "notebook": os.environ.get("KVLAB_NOTEBOOK"),
        # of a headless run those that are not the defaults; unknown (null) for any other
        "parameters": json.loads(os.environ.get("KVLAB_PARAMETERS", "null")),
        "machine": machine_line(),
    }
    add_to_manifest(results_dir(), {file: entry})


@cache
def machine_line() -> str:
    """The machine in one line: processor, memory, GPU, and the two versions that matter."""
    parts = [f"{_cpu_model()}, {psutil.cpu_count()} cores"]
    parts.append(f"{psutil.virtual_memory().total / 2**30:.0f} GiB RAM")
    parts.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    parts += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    return "; ".join(parts)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.machine()
