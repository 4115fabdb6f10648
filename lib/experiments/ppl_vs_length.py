"""The loss along a text, token by token: rolling means with an interval over texts."""

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from lib.measure.stats import by_position, mean_ci, ppl_ratio_ci, with_interval
from lib.require import require


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
    """Perplexity by position of a method known at the tokens `targets` only, as by `by_position`.

    `sample` is (texts, targets), `base` another method's (texts, tokens): the paired ratio of the
    two at the targets, on top of the other's curve, cut at 1 as there. Fewer than four targets
    make no row.
    """
    rows = []
    spans = zip(edges[:-1], edges[1:], strict=True)
    for (low, high), known in zip(spans, by_position(base, edges).itertuples(), strict=True):
        inside = (targets >= low) & (targets < high)
        if inside.sum() >= 4:
            gap = ppl_ratio_ci(sample[:, inside], base[:, targets[inside] - 1])
            ppl = (np.maximum(known.ppl * ratio, 1) for ratio in gap)
            rows.append({"position": known.position} | with_interval("ppl", ppl))
    return pd.DataFrame(rows)
