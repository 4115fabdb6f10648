"""Scattered tokens: each layer holds what a compressor chose, and turns its keys to their places.

A layer cuts itself once it has its new tokens; where tokens are scored by attention, once attention
has told what they received.
"""

import math

import torch
from torch.nn.functional import pad

from lib.compressors import Compressor
from lib.compressors.base import Held, gather_tokens

from .layer import Layer
from .rope import Rotation


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
        rotation: Rotation,
    ):
        super().__init__()
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.compressor, self.rope = compressor, rotation.cached
        self.in_values = rotation.in_values
        self.queries = compressor.layer_queries(layer_idx, num_layers)
        self.buffer = buffer
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
    def rows(self) -> int:
        return self.keys.shape[0] if self.is_initialized else 0

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

    def take_tokens(self, key_states, value_states):
        self.make_room(key_states, value_states)
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
        if attention.shape[1] != self.keys.shape[1]:  # latent: all heads share what is cached
            attention = attention.unflatten(1, (self.keys.shape[1], -1)).mean(dim=2)
        before = pad(self.attention, (0, 0, 0, attention.shape[2] - self.attention.shape[2]))
        if self.queries == math.inf:
            self.attention = before + attention
        elif attention.shape[-1] >= self.queries:  # no earlier query counts any more
            self.attention = attention[..., -self.queries :]
        else:
            self.attention = torch.cat((before, attention), dim=-1)[..., -self.queries :]
        self._compress(self.attention.sum(dim=-1))

    def _compress(self, scores: torch.Tensor | None = None) -> None:
        """Cut if more is held than may be; `scores` (B, H, n)."""
        which, seen = (self.layer_idx, self.num_layers), self.get_seq_length()
        budget = self.compressor.layer_budget(*which, seen)
        if not budget or not self.buffer or self.length > budget + self.buffer:
            held = Held(self.keys, self.values, *which, scores, seen)
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

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`: not in place, since a tensor may be of inference mode."""
        self.take(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        for name, x in self.tensors().items():
            setattr(self, name, x[:, :, :tokens_to_remove])

    def turn_to(self, position: int) -> None:
        """Let the kept tokens stand directly before `position`."""
        if self.rope is None:
            return
        length = self.source.shape[2]
        target = torch.arange(position - length, position, device=self.source.device)
        self.keys = self.rope.turn(self.source, target - self.source_position)


class ScatteredStore:
    """What a cache asks of all its scattered layers together; there is no padding."""

    pads = None

    def __init__(
        self,
        rotations: list[Rotation],
        compressor: Compressor,
        buffer: int,
        own_window: int | None = None,
    ):
        self.own_window = own_window
        each = len(rotations), compressor, buffer
        self.layers = [ScatteredLayer(i, *each, x) for i, x in enumerate(rotations)]
        # whether tokens are scored by attention
        self.scored = any(layer.queries for layer in self.layers)

    def _nothing(self, *args) -> None:
        """Layers share nothing; what leaves is known only when they have the keys, and cut."""

    reset = take = plan = settle = _nothing

    def lengths(self, seen: int) -> list[int]:
        """Tokens held per layer."""
        return [layer.length for layer in self.layers]

    def cuts(self, seen: int) -> int:
        """How often the layer was cut that was cut most."""
        return max(layer.evictions for layer in self.layers)

    def evicted(self, seen: int) -> int:
        """Tokens that have left the layer that lost most."""
        return max(layer.evicted for layer in self.layers)

    def is_whole(self, seen: int) -> bool:
        """Whether the last tokens can be taken back: none has left, and none gave attention."""
        return not self.scored and self.evicted(seen) == 0

    def is_plain(self, n: int, seen: int) -> bool:
        """Whether the model's own attention will do for `n` tokens more, without a mask of ours."""
        longest = max(self.lengths(seen)) + 1  # may outgrow the model's own window
        return seen == 0 or (n == 1 and longest <= (self.own_window or longest))

    def is_causal(self, n: int, seen: int) -> bool:
        """Whether the model's own causal mask is right for `n` tokens more."""
        return not self.scored and (n == 1 or len(set(self.lengths(seen))) == 1)

    def awaits_sinks(self, seen: int) -> bool:
        """There is no padding."""
        return False

    def rebase(self, layers: list[ScatteredLayer], seen: int, position: int, to: int) -> None:
        """Let the tokens that stand before `position` stand before `to`."""
        for layer in layers:
            layer.turn_to(to)
