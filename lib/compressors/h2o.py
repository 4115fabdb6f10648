"""H2O: recent tokens and heavy hitters, the tokens that have received most attention."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require_int

from .base import Compressor, Held, keep_best, layer_set, require_budget, scores_of


@dataclass
class H2O(Compressor):
    """Keep the last `recent_size` tokens and, per KV head, the `heavy_size` heaviest before them.

    A token weighs the attention it has received from all queries since it came, its own included,
    averaged over the query heads that share its key. The first tokens have no place of their own.
    Layers in `skip_layers` are never cut. Zhang et al. 2023, arXiv:2306.14048.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2306.14048"
    heavy_size: int = 256
    recent_size: int = 256
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("heavy_size", self.heavy_size, 0)
        require_int("recent_size", self.recent_size, 1)
        self.skip_layers = layer_set(self.skip_layers)

    @property
    def budget(self) -> int:
        return self.heavy_size + self.recent_size

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        """Heavy and recent tokens in halves, as in the paper."""
        require_budget(budget, start_size)
        return cls(budget // 2, budget - budget // 2, skip_layers)

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        return 0 if layer_idx in self.skip_layers else math.inf

    def keep(self, held: Held) -> torch.Tensor | None:
        T, recent = held.length, self.recent_size
        if held.layer_idx in self.skip_layers or self.budget >= T:
            return None
        older = scores_of(held)[:, :, : T - recent]
        return keep_best(older, self.heavy_size, recent=recent)
