"""The loss along texts of two lengths, token by token, and what the literature has found of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from lib.compressors import Compressor
from lib.measure.perplexity import evaluate
from lib.measure.stats import (
    by_position,
    log_edges,
    mean_ci,
    ppl_ci,
    ppl_ratio_ci,
    stretches,
    verdict,
    with_interval,
)
from lib.require import require

AS_GOOD = 0.05  # a ratio of perplexities within so much of 1 counts as none


@dataclass(frozen=True)
class Published:
    """A perplexity of the literature, and the one it is compared with."""

    name: str  # what is compared here
    pattern: str
    source: str
    ppl: float
    than: float
    worse: bool  # what was found: worse, or as good


_PYTHIA = "Pythia-12B, 2,048 tokens kept, PG-19"
_LLAMA = "Llama-2-13B, 1,024 tokens kept, a book of PG-19"
# Xiao et al. 2023, arXiv:2309.17453: the numbers of sinks, table 2; the four ways, figure 1, where
# the window is read anew without the first tokens. What isn't named is held against sinks + window
LITERATURE = (
    Published("0 sinks", "without sinks it is worse than with four", _PYTHIA, 21.62, 12.09, True),
    Published("1 sinks", "one sink is as good as four", _PYTHIA, 11.95, 12.09, False),
    Published("2 sinks", "two sinks are as good as four", _PYTHIA, 12.09, 12.09, False),
    Published("8 sinks", "eight sinks are as good as four", _PYTHIA, 12.02, 12.09, False),
    Published("window", "the window is worse", _LLAMA, 5158, 5.40, True),
    Published("dense", "dense beyond the context length is worse", _LLAMA, 5641, 5.40, True),
    Published("recompute", "the window read anew is as good", _LLAMA, 5.43, 5.40, False),
)


def literature_table(ours: Mapping[str, tuple[float, float, float]]) -> pd.DataFrame:
    """The patterns of `LITERATURE` beside `ours`: ratio of perplexities, low, high by name.

    A pattern "worse" holds where the whole interval is above 1, and doesn't where all of it is
    below; "as good" holds where all of it is within `AS_GOOD` of 1, and doesn't where it is all
    outside. Else the two are not told apart; what isn't in `ours` was not measured.
    """
    rows = []
    for found in LITERATURE:
        row = {"pattern": found.pattern, "theirs": f"{found.ppl:,.6g} / {found.than:.2f}"}
        row |= {"ratio_theirs": found.ppl / found.than}
        row |= with_interval("ours", ours.get(found.name, (nan, nan, nan)))
        row |= {"verdict": "not measured", "source": found.source}
        if found.name in ours:
            row["verdict"] = verdict(*ours[found.name][1:], int(found.worse), 1, AS_GOOD)
        rows.append(row)
    return pd.DataFrame(rows)


def read_far(
    model,
    texts: torch.Tensor,
    long_texts: int,
    length: int,
    compressor: Compressor | None = None,
    **options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of all `texts` (N, T) up to `length` tokens, and of the first `long_texts` to their end.

    (N, length - 1) and (long_texts, T - 1); `options` are those of `evaluate`.
    """
    far = evaluate(model, texts[:long_texts], compressor, **options).nll
    near = [far[:, : length - 1]]
    if long_texts < len(texts):
        near.append(evaluate(model, texts[long_texts:, :length], compressor, **options).nll)
    return torch.cat(near), far


def edges_of(length: int, far: int, first: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the spans for texts of `length` tokens, and from there to `far`, on a log axis."""
    beyond = log_edges(length - 1, far - 1) if far > length else np.array([], dtype=int)
    return log_edges(first, length - 1), beyond


def by_span(
    read: tuple[torch.Tensor, torch.Tensor],
    base: tuple[torch.Tensor, torch.Tensor],
    edges: tuple[np.ndarray, np.ndarray],
) -> pd.DataFrame:
    """`by_position` of what `read_far` gives: all of the texts first, then those read further."""
    parts = [by_position(nll, *rest) for nll, *rest in zip(read, edges, base, strict=True)]
    return pd.concat(parts, ignore_index=True)


def rolling_nll(nll: torch.Tensor, width: int, points: int) -> pd.DataFrame:
    """Mean NLL of the last `width` predicted tokens, at up to `points` evenly spread positions.

    `nll` (texts, tokens) in nats may be a difference of two methods. Columns `position` (of the
    last token), `nll`, `nll_low`, `nll_high` (95% over texts).
    """
    tokens = nll.shape[1]
    require(1 <= width <= tokens, "width", width, f"1..{tokens}, the tokens of a text")
    sums = pad(nll.double().cumsum(1), (1, 0))  # (texts, tokens + 1)
    positions = np.unique(np.linspace(width, tokens, points).astype(int))
    means = (sums[:, positions] - sums[:, positions - width]) / width
    rows = [(end, *mean_ci(mean.numpy())) for end, mean in zip(positions, means.T, strict=True)]
    return pd.DataFrame(rows, columns=["position", "nll", "nll_low", "nll_high"])


def on_top_of(
    sample: torch.Tensor, base: torch.Tensor, targets: torch.Tensor, edges: np.ndarray
) -> pd.DataFrame:
    """`by_span` of a method known at the tokens `targets` only.

    `sample` is (texts, targets), `base` another method's (texts, tokens). `ratio` is that of the
    two at the targets; `ppl` is it on top of the other's curve, at least 1, without an interval.
    Fewer than four targets make no row.
    """
    rows = []
    for begin, end in pairwise(edges.tolist()):
        inside = (targets >= begin) & (targets < end)
        if inside.sum() >= 4:
            gap = ppl_ratio_ci(sample[:, inside], base[:, targets[inside] - 1])
            ppl = max(1.0, ppl_ci(base[:, begin:end])[0] * gap[0])
            row = {"position": float(np.sqrt(begin * end)), "begin": begin, "end": end}
            row |= with_interval("ppl", (ppl, nan, nan)) | with_interval("ratio", gap)
            rows.append(row | {"n_texts": len(base)})
    return pd.DataFrame(rows)


def along_stream(nll: torch.Tensor, base: torch.Tensor, parts: int = 25) -> pd.DataFrame:
    """Perplexity along one stream (T,) in even parts, and its ratio to `base` on the same tokens.

    Columns `position` (middle of the part), `ppl`, `ratio`, each with `_low` and `_high` (95% over
    16 stretches of a part), and `n_stretches`.
    """
    edges = np.linspace(0, len(nll), parts + 1).astype(int)
    rows = []
    for begin, end in pairwise(edges.tolist()):
        mine, other = (stretches(each[begin:end]) for each in (nll, base))
        row = {"position": (begin + end) // 2} | with_interval("ppl", ppl_ci(mine))
        row |= with_interval("ratio", ppl_ratio_ci(mine, other))
        rows.append(row | {"n_stretches": len(mine)})
    return pd.DataFrame(rows)
