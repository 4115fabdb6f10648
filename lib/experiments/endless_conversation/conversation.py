"""A conversation many times longer than the cache: what is answered, and how well it is read."""

import copy
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lib.cache.baseline import held_lengths
from lib.measure.chat import Chat
from lib.measure.instruments import now
from lib.measure.stats import mean_ci, share_ci, with_interval
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


def all_full(runs: pd.DataFrame, base: str = "dense") -> int:
    """The first turn whose question finds each cache but the base's cut, or one past the last."""
    lost = runs[runs.seen > runs.cache_length].groupby("method").turn.min()
    cut = lost.reindex(runs[runs.method != base].method.unique())
    return int(runs.turn.max() if cut.isna().any() or cut.empty else cut.max()) + 1


def summary(runs: pd.DataFrame, first: int, base: str = "dense") -> pd.DataFrame:
    """Each method of `runs` over the turns from `first` on: means, and differences to `base`.

    Differences are paired by turn. Columns `nll`, `repeated_%`, `said_before_%` and the three's
    `_difference`, with 95% intervals over turns, `kept` tokens at the end and of how many `seen`,
    the median `ms_per_token` and `n_turns`.
    """
    own = {method: part.set_index("turn") for method, part in runs.groupby("method", sort=False)}
    rows = []
    for method, whole in own.items():
        part, row = whole.loc[first:], {"method": method}
        for column in ("nll", "repeated_%", "said_before_%"):
            estimate = share(part[column]) if column == "said_before_%" else interval(part[column])
            row |= with_interval(column, estimate)
            difference = interval(part[column] - own[base].loc[first:, column])
            row |= with_interval(f"{column.removesuffix('_%')}_difference", difference)
        row |= {"kept": whole.cache_length.iloc[-1], "seen": whole.seen.iloc[-1]}
        row |= {"ms_per_token": part.ms_per_token.median(), "n_turns": len(part)}
        rows.append(row)
    return pd.DataFrame(rows)


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
    """What each method answered at `turns`, a column each; answers are cut after `length` signs."""
    shown = runs[runs.turn.isin(turns)]
    shown = shown.assign(answer=[one_line(answer, length) for answer in shown.answer])
    table = shown.pivot(index=["turn", "question"], columns="method", values="answer")
    return table[list(runs.method.unique())].reset_index().rename_axis(columns=None)


def one_line(text: str, length: int) -> str:
    """`text` as a table's cell may hold it."""
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= length else line[:length].rstrip() + " ..."
