"""LagKV: a token matters if it stands out against the tokens that came after it."""

import math
from dataclasses import dataclass

import torch

from lib.require import require_int

from .base import Compressor, Held, as_float, keep_best


def lag_scores(states: torch.Tensor) -> torch.Tensor:
    """Scores (B, H, P - 1, L) of all but the last of P partitions of L keys or values.

    `states` (B, H, P, L, D) are scaled, per channel, by the range of the next partition; a token's
    spread over the channels goes through a softmax over its partition.
    """
    ours, following = states[:, :, :-1], states[:, :, 1:]
    low = following.amin(dim=3, keepdim=True)  # (B, H, P - 1, 1, D)
    span = following.amax(dim=3, keepdim=True) - low
    span = span.where(span > 0, 1)  # a channel that is constant there is only moved
    scaled = (ours - low) / span
    # `std`, several times as fast
    spread = (scaled - scaled.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return (spread / math.sqrt(scaled.shape[-1] - 1)).softmax(dim=-1)


@dataclass
class LagKV(Compressor):
    """Keep sinks, the last partition, and of the earlier ones the tokens with the highest scores.

    Partitions of `lag_size` tokens follow the `start_size` sinks; tokens behind the last whole one
    stay with it. A token's score is the sum of `lag_scores` of its key and its value, per head.
    What exceeds `budget` leaves the earlier partitions in equal numbers, the oldest ones give one
    more where it doesn't divide. Layers in `skip_layers` are never cut. Liang et al. 2025,
    arXiv:2504.04704, where instead a constant share of each partition stays and the cache grows.
    """

    name = "lagkv"
    paper = "Liang et al. 2025, arXiv:2504.04704"
    reads_values = True
    least_besides = 4
    budget: int = 512
    start_size: int = 4
    lag_size: int = 128
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        require_int("lag_size", self.lag_size, 2)
        # beyond the budget there is then always an earlier partition
        require_int("budget", self.budget, self.start_size + 2 * self.lag_size)

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """Partitions of a quarter of what the sinks leave, at most 128 tokens."""
        lag_size = min(128, max(2, (budget - start_size) // 4))
        return {"budget": budget, "lag_size": lag_size}

    def choose(self, held: Held) -> torch.Tensor:
        T, S, L = held.length, self.start_size, self.lag_size
        P = (T - S) // L
        pair = (as_float(x[:, :, S : S + P * L]) for x in (held.keys, held.values))
        scores = sum(lag_scores(x.unflatten(2, (P, L))) for x in pair)  # (B, H, P - 1, L)
        each, more = divmod(T - self.budget, P - 1)
        stay = L - each - (torch.arange(P - 1, device=scores.device) < more).int()
        order = scores.argsort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(L, device=scores.device).expand_as(order)
        place = torch.empty_like(order).scatter_(-1, order, ranks)  # 0: the best of its partition
        chosen = (place < stay[:, None]).flatten(2).int()  # (B, H, (P - 1) * L)
        recent = T - S - (P - 1) * L
        return keep_best(chosen, self.budget - S - recent, S, recent)
