"""KeyDiff: what all keys have in common can go, the keys that stand apart stay."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lib.require import require_int

from .base import Compressor, Held, as_float, keep_best


@dataclass
class KeyDiff(Compressor):
    """Evict, per head, the tokens whose keys are most like the mean of all normalised keys.

    Likeness is cosine similarity. `budget` tokens stay, the last `recent_size` in any case; layers
    in `skip_layers` are never cut. Park et al. 2025, arXiv:2504.15364.
    """

    name = "keydiff"
    paper = "Park et al. 2025, arXiv:2504.15364"
    budget: int = 512
    recent_size: int = 0
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        require_int("recent_size", self.recent_size, 0)
        require_int("budget", self.budget, self.recent_size + 1)
        super().__post_init__()

    def choose(self, held: Held) -> torch.Tensor:
        T, recent = held.length, self.recent_size
        keys = F.normalize(as_float(held.keys), dim=-1)
        anchor = keys.mean(dim=2, keepdim=True)  # (B, H, 1, D)
        # the anchor's length would scale all of a head's similarities alike
        likeness = (keys * anchor).sum(dim=-1)  # (B, H, T)
        return keep_best(-likeness[:, :, : T - recent], self.budget - recent, recent=recent)
