"""H2O by key norms: sinks, heavy hitters and recent tokens, without looking at attention."""

from dataclasses import dataclass

import torch

from lib.require import require_int

from .base import Compressor, Held, keep_best, key_norms


@dataclass
class H2OL2(Compressor):
    """Keep the first `start_size` tokens, the last `recent_size`, and `heavy_size` between them.

    Heavy hitters, which H2O (Zhang et al. 2023, arXiv:2306.14048) finds by the attention they have
    received, are here those with the lowest key norms, per head: low norms go with high attention
    (Devoto et al. 2024, arXiv:2406.11430). Layers in `skip_layers` are never cut.
    """

    name = "h2o_l2"
    paper = "after Zhang et al. 2023, arXiv:2306.14048"
    start_size: int = 4
    heavy_size: int = 254
    recent_size: int = 254
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("recent_size", self.recent_size, 1)
        super().__post_init__()

    @property
    def budget(self) -> int:
        return self.start_size + self.heavy_size + self.recent_size

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """What the sinks leave goes to heavy and to recent tokens in halves, as in H2O."""
        rest = budget - start_size
        return {"heavy_size": rest // 2, "recent_size": rest - rest // 2}

    def choose(self, held: Held) -> torch.Tensor:
        middle = held.keys[:, :, self.start_size : held.length - self.recent_size]
        return keep_best(-key_norms(middle), self.heavy_size, self.start_size, self.recent_size)
