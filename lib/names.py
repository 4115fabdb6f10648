"""One name a method, as it is typed and as pages show it; which columns hold an interval."""

import re

import pandas as pd

LABELS = {
    "baseline": "dense",
    "recent_only": "window",
    "streaming_llm": "sinks + window",
    "streaming_lazy": "sinks + window, lazy",
    "static_cache": "dense, StaticCache",
}
# Columns that name methods, as users type them in the CSV and as pages call them elsewhere
NAME_COLUMNS = ("method", "group", "best", "next", "as_good")
# Rows are named after their method, a short form of it, or a short form and a strategy
_SHORT = {"streaming": "streaming_llm", "l2_ratio": "l2_compress", "fix_l2": "fix_size_l2"}


def display_name(name: str) -> str:
    """What pages call a method or a row: "sinks + window 512" for `streaming_512`.

    Methods without a label are called as their rows are: `tova_512`. What follows a comma, a way
    to run the method, stays as it is.
    """
    row, *way = name.split(", ", 1)
    group, budget = split_row(row)
    label = LABELS.get(_of_group(group))
    return ", ".join([f"{label} {budget}".rstrip() if label else row, *way])


def display_names(cell: str, column: str) -> str:
    """A cell's methods by their display names; `as_good` names several, with commas between."""
    return "; ".join(map(display_name, cell.split(", ") if column == "as_good" else [cell]))


def interval_of(table: pd.DataFrame, column: str) -> list[str]:
    """The two columns behind `column` that hold its interval or its quartiles; none if they don't.

    Behind `ppl` they are `ppl_low` and `ppl_high`, or `ppl_q1` and `ppl_q3`; behind `heads_%` also
    `heads_low` and `heads_high`, and `low` and `high` behind any.
    """
    place = table.columns.get_loc(column)
    behind = [str(name) for name in table.columns[place + 1 : place + 3]]
    for ends in ((r"_?low", r"_?high"), ("_q1", "_q3")):
        stems = {re.sub(f"{end}$", "", name) for end, name in zip(ends, behind, strict=False)}
        if len(behind) == 2 and len(stems) == 1 and stems.isdisjoint(behind):
            return behind if str(column).startswith(*stems) else []
    return []


def method_of(name: str) -> str:
    """The method of a row or of a group: its own name, or the one whose short form begins it."""
    return _of_group(split_row(name)[0])


def split_row(name: str) -> tuple[str, str]:
    """A row's group and its budget, the whole number at the end, if any: ("streaming", "512")."""
    return re.fullmatch(r"(.+?)(?:_(\d+))?", name or "-").groups("")


def _of_group(group: str) -> str:
    if group in LABELS:
        return group
    fitting = (method for short, method in _SHORT.items() if f"{group}_".startswith(f"{short}_"))
    return next(fitting, group)
