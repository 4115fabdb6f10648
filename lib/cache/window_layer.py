"""One layer of sinks and a window: it does with its keys and values what a step has planned."""

import torch

from lib.compressors.base import gather_tokens

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
        self.slots, self.rope, self.static = slots, rotation.cached, static
        self.in_values = rotation.in_values
        self.which = which  # of the step's `sink_shift`
        self.is_initialized = False
        # of tokens that left in the last step, as far as it is recorded
        self.left_keys: torch.Tensor | None = None
        self.left_values: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Slots in use."""
        return self.slots.used(self.get_seq_length())

    @property
    def rows(self) -> int:
        return self.key_slots.shape[0] if self.is_initialized else 0

    @property
    def keys(self) -> torch.Tensor | None:
        """What is held, sinks in front, as the next token sees it: a copy, (B, H, T, D)."""
        return self._plain() if self.in_values else self._turned()

    @property
    def values(self) -> torch.Tensor | None:
        """What is held, sinks in front: a copy, (B, H, T, D)."""
        return self._turned() if self.in_values else self._plain()

    def _turned(self) -> torch.Tensor | None:
        """What is held of what rotates."""
        if not self.is_initialized:
            return None
        sinks = self.sink_keys
        if self.rope is not None and self.step is not None:
            own = torch.as_tensor(self.get_seq_length(), device=sinks.device)
            own = own[None, None] if self.slots.pads is None else own - self.slots.pads
            delta = self.step.position - self.step.seen + own - self.slots.held(own)  # (1 or B, 1)
            sinks = self.rope.turn(sinks, delta[:, None])
        return self._held(self.key_slots, sinks)

    def _plain(self) -> torch.Tensor | None:
        """What is held of what doesn't."""
        return self._held(self.value_slots, self.sink_values) if self.is_initialized else None

    def _held(self, buffer: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        seen, first = self.get_seq_length(), self.slots.first
        used, front = self.slots.used(seen), self.slots.front(seen)
        window = buffer[:, :, first + front : first + used]
        # a padded window may have the sinks as well
        return torch.cat((sinks[:, :, : min(used, seen) - window.shape[2]], window), dim=2)

    @torch.inference_mode(False)
    def lazy_initialization(self, key_states, value_states):
        (B, H, _, D), slots = key_states.shape, self.slots
        self.key_slots = key_states.new_zeros(B, H, slots.size, D)  # (B, H, slots, D)
        self.value_slots = value_states.new_zeros(B, H, slots.size, value_states.shape[-1])
        self.sink_keys = self.key_slots[:, :, : slots.start_size].clone()  # as they came
        self.sink_values = self.value_slots[:, :, : slots.start_size].clone()
        exact = torch.promote_types(key_states.dtype, torch.float32)
        self.sink_wide = self.sink_keys.to(exact, copy=True)
        self.sink_half = self.sink_wide.clone()
        self.is_initialized = True
        if self.static and not torch.compiler.is_compiling():
            for x in self.tensors().values():
                torch._dynamo.mark_static_address(x)

    def crop(self, tokens_to_remove: int) -> None:
        """The slots behind what is held are not seen."""

    def reset(self) -> None:
        """Begin a new stream: the buffers stay, what is in them is not seen again."""
        self.step = None
        self._forget()

    def _forget(self) -> None:
        """The last step's tokens won't be taken back."""
        self.left_keys = self.left_values = None
        self.undoable = 0

    def take_tokens(self, key_states, value_states):
        self.make_room(key_states, value_states)
        if self.step.new_sinks is not None:
            self._keep_sinks(key_states, value_states)
        if self.step.n == 1:
            return self._one(key_states, value_states)
        return self._several(key_states, value_states)

    def _one(self, key, value):
        """Write the token into its slot, and the sinks anew where they must move or turn."""
        step, device = self.step, key.device
        if self.undoable:
            self._forget()
        self.key_slots.index_copy_(2, step.slot.to(device), key)
        self.value_slots.index_copy_(2, step.slot.to(device), value)
        if step.sink_slots is not None:
            sinks, where = self.sink_keys, step.sink_slots.to(device)
            if step.sink_shift is not None and self.rope is not None:
                sinks = self._turned_sinks()
            self.key_slots.index_copy_(2, where, sinks)
            self.value_slots.index_copy_(2, where, self.sink_values)
        if self.static:
            return self.key_slots, self.value_slots
        used = slice(step.first, step.first + step.held + 1)
        return self._seen(self.key_slots[:, :, used]), self._seen(self.value_slots[:, :, used])

    def _seen(self, x: torch.Tensor) -> torch.Tensor:
        """What attention is given of `x` (B, H, S, D), the sinks, the window and what is new."""
        index = self.step.lost
        if index is None:
            return x
        index = index.to(x.device)[:, None].expand(-1, x.shape[1], -1)
        window = x[:, :, self.slots.start_size :]
        return torch.cat((gather_tokens(x, index), window), dim=2)

    def _turned_sinks(self) -> torch.Tensor:
        """`rope.turn` in three operations, for it is done at every step."""
        cos, sin = (x.to(self.sink_wide) for x in self.step.sink_shift[self.which])
        return torch.addcmul(self.sink_wide * cos, self.sink_half, sin).to(self.key_slots.dtype)

    def _several(self, key_states, value_states):
        """Held and new tokens; what stays is written to the front of the buffer.

        The sinks come un-turned: `lib.cache.attention` turns the queries instead.
        """
        step = self.step
        window = slice(step.first + step.held_front, step.first + step.held)
        uncut = [
            torch.cat((sinks[:, :, : step.held_front], buffer[:, :, window], new), dim=2)
            for buffer, sinks, new in (
                (self.key_slots, self.sink_keys, key_states),
                (self.value_slots, self.sink_values, value_states),
            )
        ]
        self._write(step, uncut)
        if self.recording and not step.dense:
            self._record(step, uncut)
        # padded rows have sinks twice in what is uncut
        return (key_states, value_states) if step.dense else tuple(map(self._seen, uncut))

    def _write(self, step: Step, uncut: list[torch.Tensor]) -> None:
        """Write what stays of `uncut` keys and values after `step` to the front of the buffer."""
        front, end = step.front_after, step.held + step.n
        for buffer, x in zip((self.key_slots, self.value_slots), uncut, strict=True):
            buffer[:, :, :front] = x[:, :, :front]
            recent = x[:, :, end - (step.held_after - front) : end]
            buffer[:, :, front : step.held_after] = recent

    def _record(self, step: Step, uncut: list[torch.Tensor]) -> None:
        """Note what has left of `uncut` and must come back if the last tokens are taken back."""
        self.undoable, end = int(min(self.recording, step.n)), step.held + step.n
        window = self.slots.recent_size + self.slots.buffer
        left = slice(
            max(step.front_after, end - self.undoable - window),
            end - (step.held_after - step.front_after),
        )
        self.left_keys, self.left_values = (x[:, :, left].clone() for x in uncut)

    def shorten(self, step: Step) -> None:
        """Have taken, of the last step's tokens, the first `step.n` only."""
        last, front = self.step, step.front_after
        for buffer, left in (
            (self.key_slots, self.left_keys),
            (self.value_slots, self.left_values),
        ):
            window = torch.cat((left, buffer[:, :, last.front_after : last.held_after]), dim=2)
            end = window.shape[2] - (last.n - step.n)
            recent = window[:, :, end - (step.held_after - front) : end]
            buffer[:, :, front : step.held_after] = recent
        self._forget()

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
        for x in (self.key_slots, self.value_slots):
            x[:, :, :length] = x[:, :, first : first + length].clone()

    def rebase(self, shift: int, window: slice) -> None:
        """Move the keys in the slots `window` back by `shift` positions."""
        if self.rope is None:
            return
        self.key_slots[:, :, window] = self.rope.turn(self.key_slots[:, :, window], -shift)
