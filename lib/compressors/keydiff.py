"""KeyDiff: what all keys have in common can go, the keys that stand apart stay."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from lib.require import require_int

from .base import Compressor, Held, as_float, keep_best, layer_set, require_budget


@dataclass
class KeyDiff(Compressor):
    """Evict, per head, the tokens whose keys are most like the mean of all normalised keys.

    Likeness is cosine similarity. `budget` tokens stay, the last `recent_size` in any case; layers
    in `skip_layers` are never cut. Park et al. 2025, arXiv:2504.15364.
    """

    name: ClassVar[str] = "keydiff"
    paper: ClassVar[str] = "Park et al. 2025, arXiv:2504.15364"
    budget: int = 512
    recent_size: int = 0
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("recent_size", self.recent_size, 0)
        require_int("budget", self.budget, self.recent_size + 1)
        self.skip_layers = layer_set(self.skip_layers)

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        require_budget(budget, start_size)
        return cls(budget, skip_layers=skip_layers)

    def keep(self, held: Held) -> torch.Tensor | None:
        T, recent = held.length, self.recent_size
        if held.layer_idx in self.skip_layers or self.budget >= T:
            return None
        keys = F.normalize(as_float(held.keys), dim=-1)
        anchor = keys.mean(dim=2, keepdim=True)  # (B, H, 1, D)
        # the anchor's length would scale all of a head's similarities alike
        likeness = (keys * anchor).sum(dim=-1)  # (B, H, T)
        return keep_best(-likeness[:, :, : T - recent], self.budget - recent, recent=recent)
