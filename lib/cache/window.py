"""Sinks and a window, in the same slots in all layers.

The store plans what a step does to the slots, each layer does it with its own keys and values, and
the store notes what has moved.
"""

import torch

from lib.compressors.base import Window, gather_tokens

from .layer import Layer
from .rope import Rotation
from .slots import Slots
from .step import Step


class WindowLayer(Layer):
    """Sinks and a window in a preallocated buffer, placed as the shared `slots` say.

    Only the sinks are turned, always from their own un-cut copies. `static` returns the whole
    buffer for a step of one token, to be masked: fixed shapes for torch.compile.
    """

    def __init__(self, slots: Slots, rotation: Rotation, which: int, static: bool):
        super().__init__()
        self.slots, self.rope, self.static = slots, rotation.cached, static
        self.in_values = rotation.in_values
        self.which = which  # of the step's `sink_shift`

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

    def take_tokens(self, key_states, value_states):
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
            if step.sink_shift is not None and self.rope is not None:
                sinks = self._turned_sinks()
            self.keys.index_copy_(2, where, sinks)
            self.values.index_copy_(2, where, self.sink_values)
        if self.static:
            return self.keys, self.values
        used = slice(step.first, step.first + step.held + 1)
        return self.keys[:, :, used], self.values[:, :, used]

    def _turned_sinks(self) -> torch.Tensor:
        """`rope.turn` in three operations, for it is done at every step."""
        cos, sin = (x.to(self.sink_wide) for x in self.step.sink_shift[self.which])
        return torch.addcmul(self.sink_wide * cos, self.sink_half, sin).to(self.keys.dtype)

    def _several(self, key_states, value_states):
        """Held and new tokens; what stays is written to the front of the buffer.

        The sinks come un-turned: `lib.cache.attention` turns the queries instead.
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
        if self.rope is None:
            return
        self.keys[:, :, window] = self.rope.turn(self.keys[:, :, window], -shift)


class WindowStore(Slots):
    """Sinks and a window, in the same slots in all layers, which are turned by `rotations`.

    `dense`: a prompt is cut only after it. Keys are of `dtype`. Layers know their slots, and these
    are told of the layers only where they move what layers hold: no cycle keeps a cache in memory.
    """

    scored = False

    def __init__(
        self,
        window: Window,
        buffer: int,
        dense: bool,
        rotations: list[Rotation],
        dtype: torch.dtype,
    ):
        super().__init__(window, buffer)
        self.dense, self.rotations = dense, rotations
        # those that differ: (rope, dims of the heads it turns)
        self.ropes = list(dict.fromkeys((x.cached, x.width) for x in rotations if x.cached))
        self.exact = torch.promote_types(dtype, torch.float32)

    def new_layers(self, static: bool) -> list[WindowLayer]:
        """The layers that share these slots."""
        known = {rope: which for which, (rope, _) in enumerate(self.ropes)}
        return [WindowLayer(self, x, known.get(x.cached, 0), static) for x in self.rotations]

    def lengths(self, seen: int) -> list[int]:
        """Tokens held per layer, once `seen` have passed."""
        return [min(self.used(seen), seen)] * len(self.rotations)

    def is_plain(self, n: int, seen: int) -> bool:
        """Whether `n` tokens more see everything before them, so that any attention will do."""
        fits = self.pads is None and seen + n <= self.budget + self.buffer
        return n == 1 or fits or self._is_dense(n, seen)

    def _is_dense(self, n: int, seen: int) -> bool:
        return self.dense and seen == 0 and n > 1

    def is_causal(self, n: int, seen: int) -> bool:
        """Whether the model's own causal mask is right for `n` tokens more."""
        return self.pads is None and (n == 1 or self.is_plain(n, seen))

    def rebase(self, layers: list[WindowLayer], seen: int, position: int, to: int) -> None:
        """Let the tokens that stand before `position` stand before `to`."""
        window = slice(self.first + self.front(seen), self.first + self.used(seen))
        for layer in layers:
            layer.rebase(position - to, window)
        self.stale = True

    def plan(self, step: Step, layers: list[WindowLayer], device) -> None:
        """Fill in what `step` does to the slots."""
        n, seen, step.slots = step.n, step.seen, self
        step.dense = self._is_dense(n, seen)
        if n == 1:
            self._make_room(layers, seen)
        columns = torch.arange(seen, seen + n, device=device)
        own = self.own(columns)  # (1 or B, n)
        step.first = self.first
        step.held, step.held_front = self.used(seen), self.front(seen)
        if step.dense:
            self.cut_at(seen + n if self.pads is None else own[:, -1:] + 1)
        step.held_after, step.front_after = self.used(seen + n), self.front(seen + n)
        start = torch.arange(self.start_size, device=device)
        if self.start_size and (self.pads is not None or seen < self.start_size):
            step.new_sinks = start[None] + (0 if self.pads is None else self.pads) - seen
        if n == 1:
            self._plan_one(step, own, start)
        elif step.ropes is not None and self.start_size and not step.dense:
            delta = (self.held(own) - own - (step.position - seen)).where(own >= 0, 0)
            step.sink_delta = delta if bool(delta.any()) else None

    def _make_room(self, layers: list[WindowLayer], seen: int) -> None:
        """Move the held tokens to the front of the buffer where the next one would not fit."""
        if self.first + self.used(seen) >= self.size:
            for layer in layers:
                layer.move(self.first, self.used(seen))
            self.first = 0

    def _plan_one(self, step: Step, own: torch.Tensor, start: torch.Tensor) -> None:
        step.slot = torch.tensor([step.first + step.held], device=own.device)
        if self.start_size and (self.stale or self.pads is not None):
            step.sink_slots = start + step.first
            if step.ropes is not None:
                # a sink stands `held` before the query, whose position is own + (position - seen)
                delta = own + (step.position - step.seen) - self.held(own)
                shifts = (rope.cos_sin(delta[..., None], width) for rope, width in self.ropes)
                step.sink_shift = [(c.to(self.exact), s.to(self.exact)) for c, s in shifts]

    def settle(self, step: Step) -> None:
        """The step's tokens are in their slots: note what has moved."""
        cut = step.held + step.n - step.held_after
        self.first = step.first + cut if step.n == 1 else 0
        placed = step.n > 1 or step.sink_slots is not None
        turned = step.n > 1 and step.held_after < step.seen + step.n  # written un-turned
        self.stale = cut > 0 or turned or (self.stale and not placed)
