"""Random: the control that every method of choosing tokens has to beat."""

from dataclasses import dataclass

import torch

from lib.require import require_share

from .base import Compressor, Held
from .fix_size_l2 import FixSizeL2


@dataclass
class Random(Compressor):
    """Keep `budget` tokens: a share `keep_ratio` for the most recent, the rest at random, per head.

    It is the choice of `FixSizeL2(strategy="random")`: it depends on `seed`, row, layer and place
    in the stream, see `random_scores` there. Layers in `skip_layers` are never cut.
    """

    name = "random"
    paper = "none"
    budget: int = 512
    keep_ratio: float = 0.2
    skip_layers: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        require_share("keep_ratio", self.keep_ratio)
        super().__post_init__()

    def choose(self, held: Held) -> torch.Tensor:
        same = FixSizeL2(self.budget, self.keep_ratio, "random", seed=self.seed)
        return same.choose(held)
