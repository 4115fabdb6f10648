"""Save tables and figures, whole files only, and enter them in the manifest.

A table is saved whole as CSV and, to be read, as Markdown; a figure as PNG and as SVG. The manifest
says what made it (`provenance.py`), and so do a figure's small print and the file of a figure
itself. A crash leaves the earlier file.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from lib.names import NAME_COLUMNS, display_names, interval_of
from lib.paths import atomic_path, results_dir

from .manifest import add_to_manifest
from .provenance import entry, in_short, lasting, subject

# A fixed salt and no date: the same figure of the same run is the same file.
matplotlib.rcParams["svg.hashsalt"] = "kv-lab"


def save_table(
    df: pd.DataFrame, name: str, caption: str = "", columns: Sequence[str] | None = None
) -> None:
    """Write `tables/<name>.csv`, all of it, and `.md`, `readable` under its caption; no index.

    Of a wide table `columns` stand in the Markdown, with what is known of their spread.
    """
    folder, caption = results_dir() / "tables", " ".join(caption.split())
    made = entry(caption)
    with atomic_path(folder / f"{name}.csv") as path:
        df.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    with atomic_path(folder / f"{name}.md") as path:
        shown = df if columns is None else df[_with_spread(df, columns)]
        above = f"{caption} {_note_on(shown, name, subject(made))}".strip()
        path.write_text(f"{above}\n\n{to_markdown(shown)}\n", encoding="utf-8")
    add_to_manifest(results_dir(), {f"tables/{name}.csv": made})


def save_figure(fig: Figure, name: str, caption: str = "") -> None:
    """Write `figures/<name>.png` and `.svg`, with the run in small print below the figure.

    Their metadata hold, as JSON in `Description`, what made them, times and rates aside. The
    caption is the figure's alternative text where a notebook shows it (`lib.plots.Picture`).
    """
    folder, caption = results_dir() / "figures", " ".join(caption.split())
    made = entry(caption)
    fig.set_label(caption)
    _print_below(fig, in_short(made))
    about = {"Description": json.dumps(lasting(made), ensure_ascii=False)}
    with atomic_path(folder / f"{name}.png") as path:
        fig.savefig(path, dpi=150, bbox_inches="tight", metadata=about | {"Software": None})
    with atomic_path(folder / f"{name}.svg") as path:
        left_out = {"Date": None, "Creator": None}
        fig.savefig(path, bbox_inches="tight", metadata=about | left_out)
    add_to_manifest(results_dir(), {f"figures/{name}.png": made})


def _print_below(fig: Figure, text: str) -> None:
    """A line of small print under all of the figure, in place of an earlier one."""
    for earlier in [artist for artist in fig.texts if artist.get_gid() == "run"]:
        earlier.remove()
    fig.draw_without_rendering()  # makes the layout, which stays as it is from here on
    fig.set_layout_engine("none")
    for legend in fig.legends:  # saving in a tight box would move them, as it does not the rest
        corner = legend.get_window_extent().transformed(fig.transFigure.inverted()).p0
        legend.set_loc("lower left")
        legend.set_bbox_to_anchor((*corner, 0, 0), transform=fig.transFigure)
        legend.borderaxespad = 0
    edge = fig.get_tightbbox()  # inches
    width, height = fig.get_size_inches()
    place = {"x": edge.x1 / width, "y": (edge.y0 - 0.06) / height, "ha": "right", "va": "top"}
    fig.text(s=text, gid="run", fontsize=7, color="#777777", **place)


def to_markdown(df: pd.DataFrame) -> str:
    """A `readable` table in Markdown, numbers to the right, less the counts `_note_on` tells."""
    df = df.drop(columns=list(_same_counts(df)))
    shown = readable(df)
    numeric = [pd.api.types.is_numeric_dtype(df[column]) for column in shown.columns]
    align = ["right" if is_number else "left" for is_number in numeric]
    shown = shown.map(lambda x: x.replace("|", "\\|") if isinstance(x, str) else x)  # no new cell
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


def _with_spread(df: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """`columns`, each followed by those of its interval, and the counts `_note_on` tells."""
    shown = [name for column in columns for name in (column, *interval_of(df, column))]
    return list(dict.fromkeys([*shown, *_same_counts(df)]))


def _note_on(df: pd.DataFrame, name: str, run_with: list[str]) -> str:
    """A sentence for the line above a table: what all rows share, what stands in its cells."""
    notes = [f"Run with {', '.join(run_with)}; all"] if run_with else ["All"]
    notes[0] += f" digits: `{name}.csv`"
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
    for digits in (3, 4, 5, 3):  # three where the ends are alike in all
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
