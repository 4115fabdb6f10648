"""What reports have found of these mistakes, beside what is found here."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from lib.measure.stats import ppl_ratio_ci, size_beside, verdict, with_interval

DENSE, RIGHT = "dense attention", "the right way"


@dataclass(frozen=True)
class Reported:
    """The perplexity with a mistake over another one, as a report has it: from `low` to `high`."""

    mistake: str
    against: str
    words: str
    low: float
    high: float


# of two reports on Pythia-70m
LITERATURE = (
    Reported("hooks, share kept", DENSE, "+1,812%", 19.12, 19.12),
    Reported("cut before attention", RIGHT, "300 instead of 40 to 70", 300 / 70, 300 / 40),
)


def literature_table(
    wrong: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], dense: torch.Tensor
) -> pd.DataFrame:
    """`LITERATURE` beside NLL (texts, tokens) of each mistake, of its right way, and of `dense`.

    `ratio` of perplexities is paired by text, with a 95% interval. The verdict "holds" where all of
    it is above 1; `size` is that of ours beside theirs (`size_beside`).
    """
    rows = []
    for one in LITERATURE:
        base = dense if one.against == DENSE else right[one.mistake]
        ours = ppl_ratio_ci(wrong[one.mistake], base)
        row = {"mistake": one.mistake, "against": one.against, "theirs": one.words}
        row |= {"theirs_from": one.low, "theirs_to": one.high}
        row |= with_interval("ratio", ours) | {"verdict": verdict(*ours[1:], 1, 1, 0)}
        row["size"] = size_beside(ours[1:], (one.low, one.high), 1)
        rows.append(row | {"n_texts": len(dense)})
    return pd.DataFrame(rows)
