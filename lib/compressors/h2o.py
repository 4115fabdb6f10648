"""H2O: recent tokens and heavy hitters, the tokens that have received most attention."""

import math
from dataclasses import dataclass

import torch

from lib.require import require_int

from .base import Compressor, Held, keep_best


@dataclass
class H2O(Compressor):
    """Keep the last `recent_size` tokens and, per KV head, the `heavy_size` heaviest before them.

    A token weighs the attention it has received from all queries since it came, its own included,
    averaged over the query heads that share its key. The first tokens have no place of their own.
    Layers in `skip_layers` are never cut. Zhang et al. 2023, arXiv:2306.14048.
    """

    name = "h2o"
    paper = "Zhang et al. 2023, arXiv:2306.14048"
    queries = math.inf
    heavy_size: int = 256
    recent_size: int = 256
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("recent_size", self.recent_size, 1)
        super().__post_init__()

    @property
    def budget(self) -> int:
        return self.heavy_size + self.recent_size

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """Heavy and recent tokens in halves, as in the paper."""
        return {"heavy_size": budget // 2, "recent_size": budget - budget // 2}

    def choose(self, held: Held) -> torch.Tensor:
        older = held.scores[:, :, : held.length - self.recent_size]
        return keep_best(older, self.heavy_size, recent=self.recent_size)
