"""Save tables and figures, whole files only, and enter them in the manifest.

A table is saved as CSV and as Markdown, a figure as PNG and as SVG. The manifest says which
notebook made it, with what parameters and caption and on what machine. A crash leaves the earlier
file.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import psutil
import torch
from matplotlib.figure import Figure

from lib.paths import atomic_path, results_dir

from .manifest import add_to_manifest

# A fixed salt and no date: the same figure is the same file.
matplotlib.rcParams["svg.hashsalt"] = "kv-lab"


def save_table(df: pd.DataFrame, name: str, caption: str = "") -> None:
    """Write `tables/<name>.csv` and `.md`, the caption, on one line, above the table; no index."""
    folder, caption = results_dir() / "tables", " ".join(caption.split())
    with atomic_path(folder / f"{name}.csv") as path:
        df.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    with atomic_path(folder / f"{name}.md") as path:
        above = f"{caption}\n\n" if caption else ""
        path.write_text(f"{above}{to_markdown(df)}\n", encoding="utf-8")
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
    """A Markdown table, floats to four significant digits, numbers to the right."""
    shown = df.map(_short)
    numeric = [pd.api.types.is_numeric_dtype(df[column]) for column in df.columns]
    align = ["right" if is_number else "left" for is_number in numeric]
    return shown.to_markdown(index=False, disable_numparse=True, colalign=align)


def _short(value: Any) -> Any:
    """A float as text with four significant digits, in plain notation up to a billion."""
    if not isinstance(value, float):
        return value
    if pd.isna(value):
        return "–"
    value += 0.0  # no -0
    if abs(value) >= 1000:
        return f"{value:.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


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
