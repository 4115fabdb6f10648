"""Copying: a span of random tokens can't be guessed.

Whoever continues its second copy has found the first. The reference model learned that and no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.measure.perplexity import Evaluation
from lib.measure.rows import BASELINE, budget_of
from lib.measure.stats import ratio_table
from lib.require import require, require_int

from .tables import recall_table


@dataclass
class Copies:
    """Texts with spans of random tokens, each of which comes twice."""

    ids: torch.Tensor  # (N, T)
    is_text: torch.Tensor  # (T,), false inside a span
    distances: list[int]  # tokens from a first copy to its second, ascending
    second: list[int]  # where the second copies begin
    span: int


def nested_copies(
    texts: torch.Tensor, distances: list[int], span: int, vocab_size: int, seed: int = 0
) -> Copies:
    """Put spans of random tokens (not token 0) and their copies into `texts` (N, T).

    The pairs are nested, nearest innermost, A B C ... C B A, and end where the texts do.
    """
    require_int("span", span, 1)
    distances, (N, T) = sorted(distances), texts.shape
    fits = np.diff([-span, *distances]) >= 2 * span
    require(fits.all(), "distances", distances, f"2 * span = {2 * span} apart, from {span} on")
    most = T - span - 1
    require(distances[-1] <= most, "distances", distances, f"at most {most} for texts of {T}")
    sampler = torch.Generator().manual_seed(seed)
    ids, is_text = texts.clone(), torch.ones(T, dtype=torch.bool)
    middle = T - span - distances[-1] // 2
    second = [middle + distance // 2 for distance in distances]
    for distance, start in zip(distances, second, strict=True):
        tokens = torch.randint(1, vocab_size, (N, span), generator=sampler)
        for place in (start - distance, start):
            ids[:, place : place + span] = tokens
            is_text[place : place + span] = False
    return Copies(ids, is_text, distances, second, span)


def copying_runs(copies: Copies, results: Mapping[str, Evaluation], cue: int) -> pd.DataFrame:
    """A row per method, `distance` and text: `right`, the share of a second copy predicted.

    Its first `cue` tokens don't count.
    """
    rows = []
    for name, result in results.items():
        for distance, start in zip(copies.distances, copies.second, strict=True):
            # `correct` begins with the second token
            right = result.correct[:, start + cue - 1 : start + copies.span - 1].float().mean(1)
            where = {"method": name, "distance": distance}
            rows += [where | {"text": i, "right": share} for i, share in enumerate(right.tolist())]
    return pd.DataFrame(rows)


def price_table(
    copies: Copies, results: Mapping[str, Evaluation], runs: pd.DataFrame, budgets: list[int]
) -> pd.DataFrame:
    """Recall beside perplexity, a row per method and budget: `<group>_<budget>`, and dense.

    Copying accuracy of `runs` over the distances longer than the budget; perplexity of the text
    between the copies and its ratio to that of dense, from where the largest budget is full.
    """
    most = copies.distances[-1] - 1
    require(max(budgets) <= most, "budgets", budgets, f"at most {most}, less than a distance")
    is_text = copies.is_text.clone()
    is_text[: max(budgets) + 1] = False
    nll = {name: result.nll[:, is_text[1:]] for name, result in results.items()}
    ratios = ratio_table({name: (part, nll[BASELINE]) for name, part in nll.items()})
    kept, parts = runs.method.map(budget_of), []
    for budget in budgets:
        own = kept.isin([budget, float("inf")])
        far = recall_table(runs[own & (runs.distance > budget)], ["method"])
        parts.append(far.assign(budget=budget).merge(ratios.drop(columns="n_texts"), on="method"))
    return pd.concat(parts, ignore_index=True)
