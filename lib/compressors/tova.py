"""TOVA: the token to which the newest one attends least leaves, whatever its place."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require_int

from .base import Compressor, Held, keep_best, layer_set, require_budget, scores_of


@dataclass
class TOVA(Compressor):
    """Keep the `budget` tokens that receive most attention from the last query.

    Attention is averaged over all heads of a layer, so that they keep the same tokens; no token is
    safe, the first and the newest are not. Layers in `skip_layers` are never cut. Oren et al. 2024,
    arXiv:2401.06104.
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "Oren et al. 2024, arXiv:2401.06104"
    budget: int = 512
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("budget", self.budget, 1)
        self.skip_layers = layer_set(self.skip_layers)

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        require_budget(budget, start_size)
        return cls(budget, skip_layers)

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        return 0 if layer_idx in self.skip_layers else 1

    def keep(self, held: Held) -> torch.Tensor | None:
        if held.layer_idx in self.skip_layers or self.budget >= held.length:
            return None
        scores = scores_of(held)
        mean = scores.mean(dim=1, keepdim=True)  # (B, 1, T)
        return keep_best(mean, self.budget).expand(-1, scores.shape[1], -1)
