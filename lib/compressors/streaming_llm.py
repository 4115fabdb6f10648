"""StreamingLLM: attention sinks and a window of recent tokens."""

from dataclasses import dataclass

import torch

from lib.require import require_int

from .base import Compressor, Held, Window


@dataclass
class StreamingLLM(Compressor):
    """Keep the first `start_size` tokens (sinks) and the last `recent_size` (Xiao et al. 2023).

    Parameters in tokens; arXiv:2309.17453. The budget is their sum.
    """

    name = "streaming_llm"
    paper = "Xiao et al. 2023, arXiv:2309.17453"
    rows = {"streaming": {}, "streaming_lazy": {}}
    start_size: int = 4
    recent_size: int = 508

    def __post_init__(self):
        require_int("recent_size", self.recent_size, 1)
        super().__post_init__()

    @property
    def budget(self) -> int:
        return self.start_size + self.recent_size

    @property
    def window(self) -> Window:
        return Window(self.start_size, self.recent_size)

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        return {"recent_size": budget - start_size}

    def choose(self, held: Held) -> torch.Tensor:
        index = torch.arange(held.length, device=held.keys.device)
        return torch.cat((index[: self.start_size], index[held.length - self.recent_size :]))
