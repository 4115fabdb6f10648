"""The rows of a comparison, such as `streaming_512`: their methods, and how each is fed and cut."""

from collections.abc import Sequence

import pandas as pd

from lib.cache.baseline import LARGE_CHUNK, any_chunk, streams
from lib.compressors import ROWS, Compressor
from lib.names import split_row
from lib.require import require

BASELINE = "baseline"


def at_budget(
    group: str, budget: int, start_size: int = 4, skip_layers: Sequence[int] = (), seed: int = 0
) -> Compressor:
    """The method of a group, such that a compressed layer keeps at most `budget` tokens.

    Layers in `skip_layers` keep everything, where the method knows of layers.
    """
    require(group in ROWS, "method", group, f"one of {tuple(ROWS)}")
    method, more = ROWS[group]
    return method.at_budget(budget, start_size, skip_layers, seed, **more)


def rows_of(
    methods: Sequence[str],
    budgets: Sequence[int],
    start_size: int = 4,
    include_baseline: bool = True,
    include_recent_only: bool = True,
    skip_layers: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Compressor | None]:
    """The rows of a comparison, by name: None for `baseline`, which keeps everything.

    `methods` names groups, each at every one of `budgets` (tokens per layer), and single rows such
    as `streaming_1024`, in order; `recent_only` is every group's control. Raises ValueError for an
    unknown name or a budget that is too small.
    """
    rows: dict[str, Compressor | None] = {BASELINE: None} if include_baseline else {}
    for name in (*(["recent_only"] if include_recent_only else []), *methods):
        group, budget = split_row(name)
        if name not in ROWS and budget:
            chosen = [(group, int(budget))]
        else:
            chosen = [(name, budget) for budget in budgets]
        for group, budget in chosen:
            method = at_budget(group, budget, start_size, skip_layers, seed)
            rows.setdefault(f"{group}_{budget}", method)
    require(len(rows) > 0, "methods", list(methods), f"at least one of {tuple(ROWS)}")
    return rows


def group_of(name: str) -> str:
    """The group of a row: `streaming` of `streaming_512`."""
    return split_row(name)[0]


def budget_of(name: str) -> float:
    """The budget of a row: 512.0 of `streaming_512`; infinite for dense."""
    return float(split_row(name)[1] or "inf")


def keeps_budget(method: Compressor | None) -> bool:
    """Whether a method bounds the cache: not dense, nor its control, a ratio of 1."""
    return method is not None and method.bounded


def buffers_of(rows: dict[str, Compressor | None], chunk_size: int) -> dict[str, int]:
    """By how much each row's cache may grow before it is cut.

    Methods that look at keys or attention, and `streaming_lazy`, are cut once per `chunk_size`
    tokens; other position-only methods after every token, as the exact definition has it. A method
    that keeps a ratio has a rhythm of its own.
    """
    lazy = {
        name: method is not None
        and method.budget is not None
        and (group_of(name) == "streaming_lazy" or not streams(method))
        for name, method in rows.items()
    }
    return {name: chunk_size - 1 if lazy[name] else 0 for name in rows}


def feeding_of(rows: dict[str, Compressor | None], chunk_size: int) -> dict[str, dict[str, int]]:
    """`chunk_size` and `buffer` of a run in which each row is cut as `buffers_of` says.

    Position-only methods and dense give the same in large chunks as token by token; others
    are fed `chunk_size` tokens at a time, and cut at a chunk's end without any buffer.
    """
    return {
        name: {"chunk_size": LARGE_CHUNK, "buffer": buffer}
        if any_chunk(rows[name])
        else {"chunk_size": chunk_size, "buffer": 0}
        for name, buffer in buffers_of(rows, chunk_size).items()
    }


def split_names(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the parts of its row names, `group` and `budget` (infinite for dense)."""
    return table.assign(group=table.method.map(group_of), budget=table.method.map(budget_of))
