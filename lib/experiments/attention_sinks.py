"""What a sink needs: the same texts begun in other ways, and the sinks of a model in training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.load.models import REFERENCE
from lib.measure.attention_maps import attention_maps, key_strength
from lib.measure.stats import mean_ci, share_ci, with_interval
from lib.paths import MODELS, local_path
from lib.require import require
from lib.training.log import read_log


def other_starts(texts: torch.Tensor, tokenizer, seed: int = 0) -> dict[str, torch.Tensor]:
    """`texts` (N, T + 1) begun in six ways, each (N, T) and named.

    As they are; with a random first token, a newline in its place, or without it; and with random
    tokens behind it, or everywhere. Random tokens are evenly drawn, none of them special.
    """
    require(texts.shape[1] > 1, "texts.shape[1]", texts.shape[1], "2 or more")
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    whole, generator = texts[:, :-1], torch.Generator().manual_seed(seed)
    random = ordinary[torch.randint(len(ordinary), whole.shape, generator=generator)]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    first, rest = whole[:, :1], whole[:, 1:]
    return {
        "text as it is": whole,
        "first token random": torch.cat((random[:, :1], rest), dim=1),
        "first token a newline": torch.cat((torch.full_like(first, newline), rest), dim=1),
        "first token cut off": texts[:, 1:],
        "rest random": torch.cat((first, random[:, 1:]), dim=1),
        "all random": random,
    }


def strength_by_text(model, texts: torch.Tensor, num_keys: int) -> np.ndarray:
    """`lib.sink_strength` of each text apart: (N, L, H, num_keys) for texts (N, T)."""
    maps = (attention_maps(model, ids) for ids in texts)
    return np.stack([key_strength(one, num_keys).numpy() for one in maps])


def sink_table(strengths: Mapping[str, np.ndarray], threshold: float = 0.3) -> pd.DataFrame:
    """Sinks of each kind of text: `strengths` by name, (N, L, H, K) as of `strength_by_text`.

    Columns `heads_%` (share of heads with a sink at the first token), `mean` and `strongest` (the
    attention on it in the mean over heads, in the strongest head of each text), each with `_low`
    and `_high` (95% over texts, from 0 to all); `texts_with_sink_%` (texts in which any head has
    one), with Wilson's interval; `elsewhere_%` (heads with a sink at another key of K).
    """
    rows = []
    for name, strength in strengths.items():
        first = strength[..., 0].reshape(len(strength), -1)  # (N, L * H)
        others = strength[..., 1:].max(-1, initial=0)  # (N, L, H)
        row = {"text": name}
        values = {"heads_%": 100 * (first > threshold).mean(1)}
        values |= {"mean": first.mean(1), "strongest": first.max(1)}
        for column, by_text in values.items():
            name, unit = column.removesuffix("_%"), "_%" if column.endswith("_%") else ""
            estimate = np.clip(mean_ci(by_text), 0, 100 if unit else 1)
            row |= with_interval(name, estimate.tolist(), unit)
        found = share_ci((first > threshold).any(1).sum(), len(first))
        columns = ("texts_with_sink_%", "texts_low", "texts_high")
        row |= {column: 100 * x for column, x in zip(columns, found, strict=True)}
        row["elsewhere_%"] = 100 * float((others > threshold).mean())
        rows.append(row | {"n_texts": len(first), "n_heads": first.shape[1]})
    return pd.DataFrame(rows)


def training_sinks(model: str, threshold: float = 0.3) -> pd.DataFrame:
    """Sinks at every evaluation of a training; no rows where no `training_log.json` lies.

    Columns `step`, `heads_%` (share of heads with a sink at the first token), `strongest`, `mean`
    with `mean_low` and `mean_high` (95% over heads), and `n_heads`.
    """
    folder = MODELS / REFERENCE if model == REFERENCE else local_path(model)
    path = Path(folder) / "training_log.json"
    columns = ["step", "heads_%", "strongest", "mean", "mean_low", "mean_high", "n_heads"]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=float)
    history, heads = read_log(path)
    rows = []
    for step, row in zip(history.step, heads.to_numpy(), strict=True):  # row: (L * H,)
        share = 100 * float((row > threshold).mean())
        rows.append((step, share, row.max(), *mean_ci(row), len(row)))
    return pd.DataFrame(rows, columns=columns)
