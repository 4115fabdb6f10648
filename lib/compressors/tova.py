"""TOVA: the token to which the newest one attends least leaves, whatever its place."""

from dataclasses import dataclass

import torch

from .base import Compressor, Held, keep_best


@dataclass
class TOVA(Compressor):
    """Keep the `budget` tokens that receive most attention from the last query.

    Attention is averaged over all heads of a layer, so that they keep the same tokens; no token is
    safe, the first and the newest are not. Layers in `skip_layers` are never cut. Oren et al. 2024,
    arXiv:2401.06104.
    """

    name = "tova"
    paper = "Oren et al. 2024, arXiv:2401.06104"
    queries = 1
    budget: int = 512
    skip_layers: tuple[int, ...] = ()

    def choose(self, held: Held) -> torch.Tensor:
        mean = held.scores.mean(dim=1, keepdim=True)  # (B, 1, T)
        return keep_best(mean, self.budget).expand(-1, held.scores.shape[1], -1)
