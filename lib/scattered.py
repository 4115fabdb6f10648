"""A layer of the cache whose tokens a compressor chooses: which stay, and where they stand.

Where tokens are scored by attention, the cut comes when attention has told.
"""

import math

import torch
from torch.nn.functional import pad

from .compressors import Compressor
from .compressors.base import Held, gather_tokens
from .layers import Layer
from .rope import Rope


class ScatteredLayer(Layer):
    """Any compressor: kept tokens, in order, stand directly before the next token.

    `source` holds the keys as they were first rotated, at `source_position`: every turn starts
    from there, so that rounding errors don't add up. `attention` is what each token has received
    from the last queries, as many as the compressor wants, or in sum (q = 1) from all.
    """

    def __init__(
        self,
        layer_idx: int,
        num_layers: int,
        compressor: Compressor,
        buffer: int,
        rope: Rope | None,
    ):
        super().__init__()
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.compressor, self.rope = compressor, rope
        budget = compressor.layer_budget(layer_idx, num_layers)
        self.queries = compressor.layer_queries(layer_idx, num_layers)
        self.limit = budget + buffer if budget and buffer else 0  # tokens that may be held uncut
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.keys = self.values = self.step = None
        self.source = None  # (B, H, n, D)
        self.source_position = None  # (B, H, n)
        self.attention = None  # (B, H, n, q), in float32 or float64
        self.is_initialized = False
        self.evictions = 0  # cuts
        self.evicted = 0  # tokens cut

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.keys.shape[2] if self.is_initialized else 0

    def lazy_initialization(self, key_states, value_states):
        B, H = key_states.shape[:2]
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.source = self.keys
        self.source_position = torch.empty(B, H, 0, dtype=torch.long, device=self.keys.device)
        if self.queries:
            exact = torch.promote_types(key_states.dtype, torch.float32)
            columns = 1 if self.queries == math.inf else 0
            self.attention = self.keys.new_zeros(B, H, 0, columns, dtype=exact)
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.queries and self.attention.shape[2] != self.length:
            raise RuntimeError("the model's attention did not say what the last step's tokens got")
        self.keys = keys = torch.cat((self.keys, key_states), dim=2)
        self.values = values = torch.cat((self.values, value_states), dim=2)
        if self.rope is not None:
            self._append_source(key_states)
        if not self.queries:
            self._compress()
        return keys, values

    def receive(self, attention: torch.Tensor) -> None:
        """Take what all tokens received from the new queries, (B, H, n, q); then cut."""
        before = pad(self.attention, (0, 0, 0, attention.shape[2] - self.attention.shape[2]))
        if self.queries == math.inf:
            self.attention = before + attention
        else:
            self.attention = torch.cat((before, attention), dim=-1)[..., -self.queries :]
        self._compress(self.attention.sum(dim=-1))

    def _compress(self, scores: torch.Tensor | None = None) -> None:
        """Cut if more is held than may be; `scores` (B, H, n)."""
        if self.length > self.limit:
            held = Held(self.keys, self.values, self.layer_idx, self.num_layers, scores)
            self._cut(self.compressor.keep(held))

    def _append_source(self, keys) -> None:
        B, H, n, _ = keys.shape
        here = torch.arange(n, device=keys.device) + self.step.position
        self.source = torch.cat((self.source, keys), dim=2)
        self.source_position = torch.cat((self.source_position, here.expand(B, H, n)), dim=2)

    def _cut(self, index: torch.Tensor | None) -> None:
        if index is None:
            return
        cut = self.length - index.shape[-1]
        self.evictions += cut > 0
        self.evicted += cut
        self.values = gather_tokens(self.values, index)
        if self.queries:
            self.attention = gather_tokens(self.attention, index)
        if self.rope is None:
            self.keys = gather_tokens(self.keys, index)
        else:
            self.source = gather_tokens(self.source, index)
            self.source_position = gather_tokens(self.source_position, index)
            self.turn_to(self.step.position + self.step.n)

    def turn_to(self, position: int) -> None:
        """Let the kept tokens stand directly before `position`."""
        length = self.source.shape[2]
        target = torch.arange(position - length, position, device=self.source.device)
        self.keys = self.rope.turn(self.source, target - self.source_position)
