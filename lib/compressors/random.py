"""Random: the control that every method of choosing tokens has to beat."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require_int, require_share

from .base import (
    Compressor,
    Held,
    keep_best,
    layer_set,
    random_scores,
    require_budget,
    share_of,
)


@dataclass
class Random(Compressor):
    """Keep `budget` tokens: a share `keep_ratio` for the most recent, the rest at random, per head.

    What is random depends on `seed` and on what is cached, see `random_scores`; it is the choice of
    `FixSizeL2(strategy="random")`. Layers in `skip_layers` are never cut.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "none"
    budget: int = 512
    keep_ratio: float = 0.2
    skip_layers: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        require_int("budget", self.budget, 1)
        require_share("keep_ratio", self.keep_ratio)
        require_int("seed", self.seed, 0)
        self.skip_layers = layer_set(self.skip_layers)

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        require_budget(budget, start_size)
        return cls(budget, skip_layers=skip_layers, seed=seed)

    def keep(self, held: Held) -> torch.Tensor | None:
        if held.layer_idx in self.skip_layers or held.length <= self.budget:
            return None
        recent = share_of(self.keep_ratio, self.budget)
        older = held.keys[:, :, : held.length - recent]
        scores = random_scores(older, held.layer_idx, self.seed)
        return keep_best(scores, self.budget - recent, recent=recent)
