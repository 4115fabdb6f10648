"""Fixed-size L2: a constant budget of recent tokens and of the lowest (or highest) key norms."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require, require_int, require_share

from .base import (
    Compressor,
    Held,
    keep_best,
    key_norms,
    layer_set,
    random_scores,
    require_budget,
    share_of,
)

STRATEGIES = ("keep_low", "keep_high", "random")


@dataclass
class FixSizeL2(Compressor):
    """Keep `fix_kv_size` tokens: a share `keep_ratio` for the most recent, the rest by key norm.

    `strategy` picks among the older tokens, per head: lowest norms, highest norms, or at random
    with `seed`. Layers in `skip_layers` are never cut. After Devoto et al. 2024, arXiv:2406.11430.
    """

    name: ClassVar[str] = "fix_size_l2"
    paper: ClassVar[str] = "after Devoto et al. 2024, arXiv:2406.11430"
    rows: ClassVar[dict[str, dict]] = {
        "fix_l2_low": {"strategy": "keep_low"},
        "fix_l2_high": {"strategy": "keep_high"},
        "fix_l2_random": {"strategy": "random"},
    }
    fix_kv_size: int = 512
    keep_ratio: float = 0.2
    strategy: str = "keep_low"
    skip_layers: tuple[int, ...] = (0, 1)
    seed: int = 0

    def __post_init__(self):
        require_int("fix_kv_size", self.fix_kv_size, 1)
        require_share("keep_ratio", self.keep_ratio)
        require_int("seed", self.seed, 0)
        self.skip_layers = layer_set(self.skip_layers)
        require(self.strategy in STRATEGIES, "strategy", self.strategy, f"one of {STRATEGIES}")

    @property
    def budget(self) -> int:
        return self.fix_kv_size

    @classmethod
    def at_budget(
        cls,
        budget: int,
        start_size: int = 4,
        skip_layers=(),
        seed: int = 0,
        strategy: str = "keep_low",
    ) -> Self:
        require_budget(budget, start_size)
        return cls(budget, strategy=strategy, skip_layers=skip_layers, seed=seed)

    def keep(self, held: Held) -> torch.Tensor | None:
        if held.layer_idx in self.skip_layers or held.length <= self.fix_kv_size:
            return None
        recent = share_of(self.keep_ratio, self.fix_kv_size)
        older = held.keys[:, :, : held.length - recent]
        if self.strategy == "random":
            scores = random_scores(older, held.layer_idx, self.seed)
        else:
            scores = key_norms(older) * (-1 if self.strategy == "keep_low" else 1)
        return keep_best(scores, self.fix_kv_size - recent, recent=recent)
