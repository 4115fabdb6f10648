"""A conversation many times longer than the cache: what is answered, and how well it is read."""

import copy
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lib.cache.baseline import held_lengths
from lib.measure.chat import Chat
from lib.measure.machine import now
from lib.measure.rows import BASELINE
from lib.measure.stats import mean_ci, share_ci, with_interval
from lib.names import display_name
from lib.progress import progress

from .script import Turn


def converse(chats: Mapping[str, Chat], turns: list[Turn]) -> pd.DataFrame:
    """Hold a conversation in each of `chats`, turn by turn; a row for each method and turn.

    `seen` tokens of the conversation and `cache_length` kept (by the layer that keeps most) after
    the answer; `nll` of the reference answer in nats per token, given what the cache then held;
    `repeated_%` of the answer's 4-grams (nan if it has none), `said_before_%` (100 if an earlier
    answer was the same, else 0) and `ms_per_token`.
    """
    rows, said = [], {method: set() for method in chats}
    for number, turn in enumerate(progress(turns, desc="conversation", unit="turn"), start=1):
        for method, chat in chats.items():
            row = {"method": method, "turn": number, "question": turn.question}
            row |= take_turn(chat, turn)
            row["said_before_%"] = 100.0 * (row["answer"] in said[method])
            said[method].add(row["answer"])
            rows.append(row)
    return pd.DataFrame(rows)


def take_turn(chat: Chat, turn: Turn) -> dict:
    """One turn of one conversation, measured between question and answer, and afterwards."""
    chat.hear(turn.question)
    nll = reference_nll(chat, turn.reference)
    fed, began = len(chat.tokens), now(chat.model.device)
    answer = chat.answer()
    seconds, ids = now(chat.model.device) - began, chat.tokens[fed:]
    return {
        "answer": answer,
        "seen": len(chat.tokens),
        "cache_length": max(held_lengths(chat.cache)),
        "nll": nll,
        "repeated_%": 100 * repeated(ids),
        "ms_per_token": 1e3 * seconds / len(ids) if ids else float("nan"),
    }


@torch.no_grad()
def reference_nll(chat: Chat, reference: str) -> float:
    """Mean NLL (nats) of the tokens of `reference` as the answer; the chat stays as it is."""
    model, ids = chat.model, chat.tokenizer(reference, add_special_tokens=False).input_ids
    ids = torch.tensor([ids], device=chat.logits.device)  # (1, n)
    cache = copy.deepcopy(chat.cache)
    later = model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
    logits = torch.cat((chat.logits[:, None], later), dim=1)  # (1, n, V)
    return F.cross_entropy(logits[0].float(), ids[0]).item()


def repeated(ids: list[int], n: int = 4) -> float:
    """Share of the n-grams of `ids` that occurred in it before; nan if it has none."""
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


def all_full(runs: pd.DataFrame) -> int:
    """The first turn whose question finds each cache but dense's cut, or one past the last."""
    lost = runs[runs.seen > runs.cache_length].groupby("method").turn.min()
    cut = lost.reindex(runs[runs.method != BASELINE].method.unique())
    return int(runs.turn.max() if cut.isna().any() or cut.empty else cut.max()) + 1


def summary(runs: pd.DataFrame, first: int) -> pd.DataFrame:
    """Each method of `runs` over the turns from `first` on: means, and differences to dense.

    Columns `nll`, `nll_difference`, `repeated_%`, `repeated_difference`, `said_before_%` and
    `ms_per_token` with 95% intervals over turns, tokens `kept` at the end, and `n_turns`.
    """
    rows = []
    for method in runs.method.unique():
        part = runs[(runs.method == method) & (runs.turn >= first)]
        row = {"method": method}
        row |= with_interval("nll", interval(part.nll))
        row |= with_interval("nll_difference", paired(runs, first, "nll", method, BASELINE))
        row |= with_interval("repeated_%", interval(part["repeated_%"]))
        row |= with_interval(
            "repeated_difference", paired(runs, first, "repeated_%", method, BASELINE)
        )
        row |= with_interval("said_before_%", share(part["said_before_%"]))
        row |= with_interval("ms_per_token", interval(part.ms_per_token))
        kept = runs[runs.method == method].cache_length.iloc[-1]
        rows.append(row | {"kept": kept, "n_turns": len(part)})
    return pd.DataFrame(rows)


def paired(
    runs: pd.DataFrame, first: int, column: str, method: str, base: str
) -> tuple[float, float, float]:
    """`column` of a method minus that of `base`, turn by turn from `first` on: mean, low, high."""
    own = runs[runs.turn >= first].pivot(index="turn", columns="method", values=column)
    return interval(own[method] - own[base] if len(own) else pd.Series(dtype=float))


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean of those that are numbers, and its 95% interval; nan for none."""
    values = values.dropna().to_numpy()
    return mean_ci(values) if len(values) else (np.nan,) * 3


def share(values: pd.Series) -> tuple[float, float, float]:
    """Of values that are 0 or 100, their mean and Wilson's interval, which always has a width."""
    if values.empty:
        return (np.nan,) * 3
    return tuple(100 * x for x in share_ci(values.sum() / 100, len(values)))


def answers_side_by_side(runs: pd.DataFrame, turns: list[int], length: int = 160) -> pd.DataFrame:
    """What each method answered at `turns`, under its display name, cut after `length` signs."""
    shown = runs[runs.turn.isin(turns)]
    shown = shown.assign(answer=[one_line(answer, length) for answer in shown.answer])
    table = shown.pivot(index=["turn", "question"], columns="method", values="answer")
    table = table[list(runs.method.unique())].rename(columns=display_name)
    return table.reset_index().rename_axis(columns=None)


def one_line(text: str, length: int) -> str:
    """`text` as a table's cell may hold it."""
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= length else line[:length].rstrip() + " ..."
