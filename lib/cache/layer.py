"""What one layer of the cache holds between steps, how it is cut, and which keys it turns.

Eviction never blinds the current step: `update` returns what was held and the new tokens uncut, and
the cut is for the next step.
"""

import torch
from transformers.cache_utils import CacheLayerMixin

from .step import Step


class Layer(CacheLayerMixin):
    """What window and scattered layers share. The cache sets `step` before the tokens come."""

    step: Step | None = None
    recording: float = 0  # how many of a step's last tokens may have to be taken back
    undoable = 0  # how many of the last step's can be, though others have left
    in_values = False  # whether the keys' rotated part is what the model caches as values

    @property
    def rows(self) -> int:
        """Sequences held, 0 before the first tokens."""
        raise NotImplementedError

    def check_rows(self, rows: int, seen: int) -> None:
        """Refuse tokens of another number of sequences than have `seen` tokens already."""
        if seen > 0 and rows != self.rows:
            raise ValueError(f"a cache of {self.rows} rows was given {rows} rows of tokens")

    def update(self, key_states, value_states, *args, **kwargs):
        """Take the new tokens' keys and values (B, H, n, D); all that attention may see."""
        if self.in_values:
            return self.take_tokens(value_states, key_states)[::-1]
        return self.take_tokens(key_states, value_states)

    def make_room(self, key_states, value_states) -> None:
        """Be ready for as many sequences as these first tokens (B, H, n, D) are of."""
        if self.rows != key_states.shape[0]:
            self.check_rows(key_states.shape[0], self.step.seen)
            self.lazy_initialization(key_states, value_states)

    def take_tokens(self, key_states, value_states):
        """`update`, for what is turned and what is not."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer's tensors; each has a row per sequence."""
        return {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`, in place."""
        for x in self.tensors().values():
            x.copy_(x.index_select(0, beam_idx.to(x.device)))

    @torch.inference_mode(False)
    def take(self, rows: torch.Tensor) -> None:
        """Become the rows `rows`."""
        for name, x in self.tensors().items():
            setattr(self, name, x.index_select(0, rows.to(x.device)))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, of all that came."""
        raise NotImplementedError

    def get_seq_length(self) -> int:
        return self.step.seen + self.step.n if self.step else 0

    def get_max_length(self) -> int:
        return -1  # no limit: old tokens leave

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, self.get_seq_length() - self.length
