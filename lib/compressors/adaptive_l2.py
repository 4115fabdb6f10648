"""Adaptive L2: the fuller the cache, the more of its highest key norms leave."""

from dataclasses import dataclass

import torch

from lib.require import require_int, require_share

from .base import Compressor, Held, keep_best, key_norms, share_of


@dataclass
class AdaptiveL2(Compressor):
    """Prune the highest key norms, per head: gently above `soft_limit`, at once above `hard_limit`.

    Up to the soft limit all tokens stay. Above it each cut removes the share `prune_share` of the
    excess, rounded down, or more where more than the hard limit would stay: fed token by token, the
    cache comes to rest about 1 / prune_share tokens above the soft limit. Layers in `skip_layers`
    are never cut. After Devoto et al. 2024, arXiv:2406.11430.
    """

    name = "adaptive_l2"
    paper = "after Devoto et al. 2024, arXiv:2406.11430"
    soft_limit: int = 384
    hard_limit: int = 512
    prune_share: float = 0.1
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("soft_limit", self.soft_limit, 1)
        require_int("hard_limit", self.hard_limit, self.soft_limit)
        require_share("prune_share", self.prune_share, above=0)
        super().__post_init__()

    @property
    def budget(self) -> int:
        return self.hard_limit

    @property
    def prune_after(self) -> int:
        return self.soft_limit

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """The budget is the hard limit, three quarters of it the soft one.

        60% of the excess leaves: at a budget of 256 or more and a cut per 64 tokens, the cache
        comes to rest between the limits, 43 tokens above the soft one.
        """
        return {"soft_limit": max(1, 3 * budget // 4), "hard_limit": budget, "prune_share": 0.6}

    def choose(self, held: Held) -> torch.Tensor | None:
        T = held.length
        pruned = share_of(self.prune_share, T - self.soft_limit)
        kept = min(self.hard_limit, T - pruned)
        return None if kept == T else keep_best(-key_norms(held.keys), kept)
