"""The two kinds of cache: what a step does to all of its layers, before it and after it.

`CompressedCache` counts the stream and speaks to the model; its kind knows what the layers hold.
"""

import torch

from .compressors import Compressor
from .compressors.base import Window
from .layers import WindowLayer
from .rope import Rope
from .scattered import ScatteredLayer
from .slots import Slots
from .steps import Step


class Windowed(Slots):
    """Sinks and a window, in the same slots in all `number` layers.

    `dense`: a prompt is cut only after it. Heads have `width` dims, and keys are of `dtype`. Layers
    know their slots, and these are told of the layers only where they move what layers hold: no
    cycle keeps a cache in memory.
    """

    scored = False

    def __init__(
        self,
        window: Window,
        buffer: int,
        dense: bool,
        number: int,
        width: int,
        dtype: torch.dtype,
    ):
        super().__init__(window, buffer)
        self.dense, self.number, self.width = dense, number, width
        self.exact = torch.promote_types(dtype, torch.float32)

    def lengths(self, seen: int) -> list[int]:
        """Tokens held per layer, once `seen` have passed."""
        return [min(self.used(seen), seen)] * self.number

    def is_plain(self, n: int, seen: int) -> bool:
        """Whether `n` tokens more see everything before them, so that any attention will do."""
        fits = self.pads is None and seen + n <= self.budget + self.buffer
        return fits or self._is_dense(n, seen)

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
        elif step.rope is not None and self.start_size and not step.dense:
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
            if step.rope is not None:
                # a sink stands `held` before the query, whose position is own + (position - seen)
                delta = own + (step.position - step.seen) - self.held(own)
                cos, sin = step.rope.cos_sin(delta[..., None], self.width)
                step.sink_shift = cos.to(self.exact), sin.to(self.exact)

    def settle(self, step: Step) -> None:
        """The step's tokens are in their slots: note what has moved."""
        cut = step.held + step.n - step.held_after
        self.first = step.first + cut if step.n == 1 else 0
        placed = step.n > 1 or step.sink_slots is not None
        turned = step.n > 1 and step.held_after < step.seen + step.n  # written un-turned
        self.stale = cut > 0 or turned or (self.stale and not placed)


class Scattered:
    """Each layer holds what its compressor chose, and looks after it; there is no padding."""

    pads = None

    def __init__(self, number: int, compressor: Compressor, buffer: int, rope: Rope | None):
        each = number, compressor, buffer, rope
        self.layers = [ScatteredLayer(i, *each) for i in range(number)]
        # whether tokens are scored by attention
        self.scored = any(layer.queries for layer in self.layers)

    def reset(self) -> None:
        """Nothing is shared by the layers."""

    def take(self, rows: torch.Tensor) -> None:
        """Nothing is shared by the layers."""

    def lengths(self, seen: int) -> list[int]:
        """Tokens held per layer."""
        return [layer.length for layer in self.layers]

    def cuts(self, seen: int) -> int:
        """How often the layer was cut that was cut most."""
        return max(layer.evictions for layer in self.layers)

    def evicted(self, seen: int) -> int:
        """Tokens that have left the layer that lost most."""
        return max(layer.evicted for layer in self.layers)

    def is_plain(self, n: int, seen: int) -> bool:
        """Whether `n` tokens more see everything before them, so that any attention will do."""
        return seen == 0

    def is_causal(self, n: int, seen: int) -> bool:
        """Whether the model's own causal mask is right for `n` tokens more."""
        return not self.scored and (n == 1 or len(set(self.lengths(seen))) == 1)

    def rebase(self, layers: list[ScatteredLayer], seen: int, position: int, to: int) -> None:
        """Let the tokens that stand before `position` stand before `to`."""
        for layer in layers:
            layer.turn_to(to)

    def plan(self, step: Step, layers: list[ScatteredLayer], device) -> None:
        """Nothing: what leaves is known only when the keys are."""

    def settle(self, step: Step) -> None:
        """Each layer has cut itself."""
