"""A training's log as tables."""

import json
from pathlib import Path

import pandas as pd

from .batches import COPIED
from .trainer import HELDOUT


def read_log(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of the training log that ships with a model."""
    return log_tables(json.loads(Path(path).read_text(encoding="utf-8")))


def log_tables(log: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A training's log, and the sink strength by evaluation (rows) and head (columns).

    Columns `n_train`, `n_heldout`, `n_copying` are the tokens behind each loss: those of the
    batches since the last evaluation, and those predicted in this one.
    """
    heads = pd.DataFrame(
        {
            f"layer {layer} head {head}": [row["sink_strength"][layer][head] for row in log]
            for layer, strengths in enumerate(log[0]["sink_strength"])
            for head in range(len(strengths))
        }
    )
    history = pd.DataFrame(log).drop(columns="sink_strength")
    history["n_train"] = history.tokens.diff().fillna(0).astype(int)
    for name, (rows, length) in (("n_heldout", HELDOUT), ("n_copying", COPIED)):
        history[name] = rows * (length - 1)  # of each row the first can't be predicted
    return history, heads
