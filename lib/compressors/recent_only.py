"""Window attention: recent tokens only, no sinks."""

from dataclasses import dataclass

import torch

from .base import Compressor, Held, Window


@dataclass
class RecentOnly(Compressor):
    """Keep the last `window_size` tokens (Longformer's sliding window, arXiv:2004.05150)."""

    name = "recent_only"
    paper = "Beltagy et al. 2020, arXiv:2004.05150"
    window_size: int = 512

    @property
    def budget(self) -> int:
        return self.window_size

    @property
    def window(self) -> Window:
        return Window(0, self.window_size)

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        return {"window_size": budget}

    def choose(self, held: Held) -> torch.Tensor:
        first = held.length - self.window_size
        return torch.arange(first, held.length, device=held.keys.device)
