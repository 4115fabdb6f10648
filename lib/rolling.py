"""The loss along a text, token by token: rolling means with an interval over texts."""

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from .compressors.base import require
from .stats import mean_ci


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
