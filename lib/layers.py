"""What one layer of the cache holds between steps, how it is cut, and which keys it turns.

Eviction never blinds the current step: `update` returns what was held and the new tokens uncut, and
the cut is for the next step.
"""

import torch
from transformers.cache_utils import CacheLayerMixin

from .compressors.base import gather_tokens
from .rope import Rope
from .slots import Slots
from .steps import Step


class Layer(CacheLayerMixin):
    """What both kinds of layer share. The cache sets `step` before the tokens come."""

    step: Step | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer's tensors; each has a row per sequence."""
        return {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`, in place."""
        for x in self.tensors().values():
            x.copy_(x.index_select(0, beam_idx.to(x.device)))

    def take(self, rows: torch.Tensor) -> None:
        """Become the rows `rows`."""
        for name, x in self.tensors().items():
            setattr(self, name, x.index_select(0, rows.to(x.device)))

    def get_seq_length(self) -> int:
        return self.step.seen + self.step.n if self.step else 0

    def get_max_length(self) -> int:
        return -1  # no limit: old tokens leave

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, self.get_seq_length() - self.length


class WindowLayer(Layer):
    """Sinks and a window in a preallocated buffer, placed as the shared `slots` say.

    Only the sinks are turned, always from their own un-cut copies. `static` returns the whole
    buffer for a step of one token, to be masked: fixed shapes for torch.compile.
    """

    def __init__(self, slots: Slots, rope: Rope | None, static: bool):
        super().__init__()
        self.slots, self.rope, self.static = slots, rope, static

    @property
    def length(self) -> int:
        """Slots in use."""
        return self.slots.used(self.get_seq_length())

    def lazy_initialization(self, key_states, value_states):
        (B, H, _, D), slots = key_states.shape, self.slots
        self.keys = key_states.new_zeros(B, H, slots.size, D)  # (B, H, slots, D)
        self.values = value_states.new_zeros(B, H, slots.size, value_states.shape[-1])
        self.sink_keys = self.keys[:, :, : slots.start_size].clone()  # as they came
        self.sink_values = self.values[:, :, : slots.start_size].clone()
        exact = torch.promote_types(key_states.dtype, torch.float32)
        self.sink_wide = self.sink_keys.to(exact, copy=True)
        self.sink_half = self.sink_wide.clone()
        self.is_initialized = True
        if self.static and not torch.compiler.is_compiling():
            for x in self.tensors().values():
                torch._dynamo.mark_static_address(x)

    def reset(self) -> None:
        """Begin a new stream: the buffers stay, what is in them is not seen again."""
        self.step = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized or self.keys.shape[0] != key_states.shape[0]:
            if self.step.seen > 0:
                rows = self.keys.shape[0], key_states.shape[0]
                raise ValueError(f"a cache of {rows[0]} rows was given {rows[1]} rows of tokens")
            self.lazy_initialization(key_states, value_states)
        if self.step.new_sinks is not None:
            self._keep_sinks(key_states, value_states)
        if self.step.n == 1:
            return self._one(key_states, value_states)
        return self._several(key_states, value_states)

    def _one(self, key, value):
        """Write the token into its slot, and the sinks anew where they must move or turn."""
        step, device = self.step, key.device
        self.keys.index_copy_(2, step.slot.to(device), key)
        self.values.index_copy_(2, step.slot.to(device), value)
        if step.sink_slots is not None:
            sinks, where = self.sink_keys, step.sink_slots.to(device)
            if step.sink_shift is not None:
                sinks = self._turned_sinks()
            self.keys.index_copy_(2, where, sinks)
            self.values.index_copy_(2, where, self.sink_values)
        if self.static:
            return self.keys, self.values
        used = slice(step.first, step.first + step.held + 1)
        return self.keys[:, :, used], self.values[:, :, used]

    def _turned_sinks(self) -> torch.Tensor:
        """`rope.turn` in three operations, for it is done at every step."""
        cos, sin = (x.to(self.sink_wide) for x in self.step.sink_shift)
        return torch.addcmul(self.sink_wide * cos, self.sink_half, sin).to(self.keys.dtype)

    def _several(self, key_states, value_states):
        """Held and new tokens; what stays is written to the front of the buffer.

        The sinks come un-turned: `lib.attention` turns the queries instead.
        """
        step = self.step
        window = slice(step.first + step.held_front, step.first + step.held)
        front, recent = step.front_after, step.held_after - step.front_after
        uncut = []
        for buffer, sinks, new in (
            (self.keys, self.sink_keys, key_states),
            (self.values, self.sink_values, value_states),
        ):
            x = torch.cat((sinks[:, :, : step.held_front], buffer[:, :, window], new), dim=2)
            buffer[:, :, :front] = x[:, :, :front]
            buffer[:, :, front : front + recent] = x[:, :, x.shape[2] - recent :]
            uncut.append(new if step.dense else x)  # padded rows have sinks twice in x
        return tuple(uncut)

    def _keep_sinks(self, keys, values) -> None:
        """Copy those of the new tokens that are sinks."""
        index = self.step.new_sinks.to(keys.device)  # (1 or B, start_size)
        here = ((index >= 0) & (index < keys.shape[2]))[:, None, :, None]
        index = index.clamp(0, keys.shape[2] - 1)[:, None].expand(*keys.shape[:2], -1)  # (B, H, .)
        for sinks, new in ((self.sink_keys, keys), (self.sink_values, values)):
            sinks.copy_(torch.where(here, gather_tokens(new, index), sinks))
        if self.rope is not None:
            self.sink_wide.copy_(self.sink_keys)
            self.sink_half.copy_(self.rope.half(self.sink_wide))

    def move(self, first: int, length: int) -> None:
        """Bring `length` slots from `first` on to the front of the buffer."""
        for x in (self.keys, self.values):
            x[:, :, :length] = x[:, :, first : first + length].clone()

    def rebase(self, shift: int, window: slice) -> None:
        """Move the keys in the slots `window` back by `shift` positions."""
        self.keys[:, :, window] = self.rope.turn(self.keys[:, :, window], -shift)
