"""What one layer of the cache holds between steps, how it cuts, and which keys it turns.

Eviction never blinds the current step: `update` returns what was held and the new tokens uncut, and
cuts for the next step.
"""

import torch
from transformers.cache_utils import CacheLayerMixin

from .compressors import Compressor
from .compressors.base import Held, Window, gather_tokens
from .rope import Rope

# free slots a window's buffer is made with: it moves once in so many tokens
SPARE_SLOTS = 64


class Layer(CacheLayerMixin):
    """What both kinds of layer share: counters of the tokens seen, held and cut."""

    def __init__(self, rope: Rope | None):
        super().__init__()
        self.rope = rope  # None: positions="original", keys are never turned
        self.seen = 0  # tokens of the stream so far
        self.position = 0  # position of the next token
        self.length = 0  # tokens held
        self.evictions = 0  # steps that cut
        self.evicted = 0  # tokens cut

    def _count(self, new: int, cut: int) -> None:
        self.seen += new
        self.position += new
        self.length += new - cut
        self.evictions += cut > 0
        self.evicted += cut

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1  # no limit: old tokens leave

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, self.seen - self.length


class WindowLayer(Layer):
    """Sinks and a window in a buffer along which the held tokens wander, without a copy per token.

    The sinks are written anew before each step, in front of the window, over slots that eviction
    has freed. They alone are turned, always from their own un-cut copies.
    """

    def __init__(self, window: Window, rope: Rope | None):
        super().__init__(rope)
        self.window = window
        self.first = 0  # slot of the first sink

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]  # (B, H, slots, D)
        self.sinks = (self.keys, self.values)  # as they came
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[2]
        self._make_room(n)
        end = self.first + self.length + n
        self.keys[:, :, end - n : end] = key_states
        self.values[:, :, end - n : end] = value_states
        self._keep_sinks(key_states, value_states)
        if self.evicted:
            self._place_sinks(n)
        keys, values = (x[:, :, self.first : end] for x in (self.keys, self.values))
        cut = max(0, self.length + n - self.window.budget)
        self.first += cut
        self._count(n, cut)
        return keys, values

    def _make_room(self, n: int) -> None:
        """Move to a new buffer when slots run out, or when a long step has left far too many."""
        B, H, slots, D = self.keys.shape
        needed = self.length + n + SPARE_SLOTS
        if self.first + self.length + n <= slots <= needed + SPARE_SLOTS:
            return
        held, slots = slice(self.first, self.first + self.length), needed
        old, self.first = (self.keys, self.values), 0
        self.keys = old[0].new_empty(B, H, slots, D)
        self.values = old[1].new_empty(B, H, slots, old[1].shape[-1])
        self.keys[:, :, : self.length] = old[0][:, :, held]
        self.values[:, :, : self.length] = old[1][:, :, held]

    def _keep_sinks(self, keys, values) -> None:
        """Copy those of the new tokens that are sinks."""
        missing = self.window.start_size - self.seen
        if missing > 0:
            new = (keys[:, :, :missing], values[:, :, :missing])
            pairs = zip(self.sinks, new, strict=True)
            self.sinks = tuple(torch.cat((old, x), dim=2) for old, x in pairs)

    def _place_sinks(self, n: int) -> None:
        """For one token sinks are turned forward; for several `lib.attention` turns the queries."""
        keys, values = self.sinks
        delta = self.position - self.window.budget
        if n == 1 and delta and self.rope is not None:
            keys = self.rope.turn(keys, delta)
        place = slice(self.first, self.first + self.window.start_size)
        self.keys[:, :, place], self.values[:, :, place] = keys, values

    def rebase(self, shift: int) -> None:
        """Move all window keys (not the sinks, they stand where they stood) back by `shift`."""
        window = slice(self.first + self.window.start_size, self.first + self.length)
        self.keys[:, :, window] = self.rope.turn(self.keys[:, :, window], -shift)
        self.position -= shift

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`."""
        rows = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.sinks = tuple(x[rows] for x in self.sinks)


class ScatteredLayer(Layer):
    """Any compressor: kept tokens, in order, stand directly before the next token.

    `source` holds the keys as they were first rotated, at `source_position`: every turn starts
    from there, so that rounding errors don't add up.
    """

    def __init__(self, layer_idx: int, compressor: Compressor, rope: Rope | None, num_layers: int):
        super().__init__(rope)
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.compressor = compressor
        self.source = None  # (B, H, n, D)
        self.source_position = None  # (B, H, n)

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        B, H, n, _ = key_states.shape
        self.keys = keys = torch.cat((self.keys, key_states), dim=2)
        self.values = values = torch.cat((self.values, value_states), dim=2)
        index = self.compressor.keep(Held(keys, values, self.layer_idx, self.num_layers))
        if self.rope is not None:
            here = torch.arange(self.position, self.position + n, device=keys.device)
            self._append_source(key_states, here.expand(B, H, n))
        self._count(n, 0 if index is None else keys.shape[2] - index.shape[-1])
        if index is not None:
            self.keys, self.values = gather_tokens(keys, index), gather_tokens(values, index)
            if self.rope is not None:
                self.source = gather_tokens(self.source, index)
                self.source_position = gather_tokens(self.source_position, index)
                self._turn()
        return keys, values

    def _append_source(self, keys, positions):
        if self.source is None:
            self.source, self.source_position = keys, positions
        else:
            self.source = torch.cat((self.source, keys), dim=2)
            self.source_position = torch.cat((self.source_position, positions), dim=2)

    def _turn(self) -> None:
        kept = self.source.shape[2]
        target = torch.arange(self.position - kept, self.position, device=self.source.device)
        self.keys = self.rope.turn(self.source, target - self.source_position)

    def rebase(self, shift: int) -> None:
        """Move all keys back by `shift` positions."""
        self.position -= shift
        self._turn()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`."""
        rows = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        if self.source is not None:
            self.source, self.source_position = self.source[rows], self.source_position[rows]
