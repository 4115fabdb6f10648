"""A transformers Cache that lets a compressor decide which tokens stay.

    cache = CompressedCache(model, StreamingLLM(4, 508))
    model.generate(**inputs, past_key_values=cache)

Each forward pass is one step. Before it, a hook on the model asks the cache for the step's position
ids and masks (`CompressedCache.step`); only a step of several tokens in which old ones leave, and
any step of a method that scores tokens by attention, needs attention of our own, `attention.py`,
and gets it for that step alone (`hooks.py`).
"""

import copy
import math
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from lib.compressors import Compressor
from lib.require import require, require_int

from .checks import (
    check_config,
    check_layers,
    check_method,
    check_output_attentions,
    check_positions,
    check_table,
    check_takes_masks,
    new_pads,
)
from .holding import Holding
from .hooks import attach, carrier, no_mask, transformers_model
from .probe import cached_by, last_position, probe
from .rope import find_rotations, unturned
from .scattered import ScatteredStore
from .step import Step, mask_of_one, mask_of_text
from .window import WindowStore

# float32 angles lose precision with the position, so positions start again every so many tokens
REBASE_EVERY = 1024


class CompressedCache(Holding):
    """A cache under one of our compressors, for any RoPE model: pass it as `past_key_values`.

    `buffer`: the cache may grow by so many tokens before it is cut (lazy eviction).
    `positions="in_cache"` counts distances inside the cache (keys are turned, in float32);
    `"original"` leaves keys as they were rotated, with gaps where tokens were cut.
    `prefill="streamed"`: each token of a prompt sees its own window; `"dense"`: the prompt sees
    all of itself and is cut afterwards, as it always is for methods that look at the keys (with
    padding its mask grows with the square of its length).
    `static`: steps of one token have fixed shapes, for torch.compile.
    Made from a config alone, it can't know of padding, attention or gradient checkpointing, nor
    stream a prompt past the budget.
    """

    def __init__(
        self,
        model_or_config,
        compressor: Compressor,
        buffer: int = 0,
        positions: str = "in_cache",
        prefill: str = "streamed",
        static: bool = False,
    ):
        check_method(compressor, positions, buffer, prefill)
        require(compressor is not None, "compressor", compressor, "a Compressor")
        self.compressor = copy.deepcopy(compressor)
        self.buffer, self.positions, self.prefill = buffer, positions, prefill
        self.static = static
        model, config = None, model_or_config
        if not isinstance(config, PreTrainedConfig):
            model_or_config = model = transformers_model(model_or_config)
            config = model.config
        check_config(config.get_text_config(), compressor, buffer)
        self.turns = positions == "in_cache"
        rotations = (find_rotations if self.turns else unturned)(model_or_config)
        own_window, readers, self.shares = None, range(len(rotations)), False
        if model is not None:
            layers = probe(model)
            own_window = check_layers(model, layers, compressor, buffer)
            readers, self.shares = cached_by(layers), any(len(x.readers) > 1 for x in layers)
        self.ropes = [rotations[i].queries for i in readers] if self.turns else None
        self.last_position = None if model is None else last_position(model)
        self.dtype = getattr(model_or_config, "dtype", None) or torch.float32
        window = compressor.window
        require(window or not static, "static", static, "False for methods that look at the keys")
        if window:
            self.store = WindowStore(window, buffer, prefill == "dense", rotations, self.dtype)
            layers = self.store.new_layers(static)
        else:
            self.store = ScatteredStore(rotations, self.compressor, buffer, own_window)
            layers = self.store.layers
        super().__init__(layers=layers)
        self.seen = self.position = 0
        self._step: Step | None = None  # the one under way
        self._midway = False  # whether it has changed something: till its end all else is wrong
        self._hooked = model is not None
        if model is not None:
            attach(model, self)

    def __repr__(self) -> str:
        return (
            f"CompressedCache({self.compressor}, budget={self.compressor.budget}, "
            f"buffer={self.buffer}, positions={self.positions!r}, prefill={self.prefill!r}, "
            f"seen={self.seen}, cached_lengths={self.cached_lengths})"
        )

    def reset(self) -> None:
        """Forget everything: the next token begins a new stream."""
        self.seen = self.position = 0
        self._step, self._midway, self.under_way = None, False, False
        self.store.reset()
        super().reset()

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys the next `query_length` tokens are given, and the index of the first of them."""
        if self.static and query_length == 1:  # a step that was announced has its mask
            raise RuntimeError("a static cache needs its steps announced: call the model itself")
        held = self.cached_lengths[layer_idx] if layer_idx < len(self.layers) else 0
        return held + query_length, self.seen - held if held else 0

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """What attention may see: all that is cached, and the new tokens (B, H, n, D)."""
        n = key_states.shape[2]
        if self.static and n == 1:  # counted beforehand: nothing here may change under compile
            return self.layers[layer_idx].update(key_states, value_states)
        if self._step is None or self._step.n != n:
            self._unannounced(key_states)
        self._midway = True
        states = self.layers[layer_idx].update(key_states, value_states)
        if layer_idx == len(self.layers) - 1:
            self._finish()
        return states

    def _unannounced(self, key_states) -> None:
        """A step that no hook saw: right as long as plain causal attention is, without padding."""
        n = key_states.shape[2]
        if self._hooked or not self.store.is_causal(n, self.seen) or self.position != self.seen:
            raise RuntimeError(
                f"a step of {n} tokens after {self.seen} needs masks, positions or scores that "
                "only the model's hook gives: make the cache from the model, "
                "CompressedCache(model, ...), and call that model"
            )
        self._begin(n, key_states.device)

    def step(
        self,
        n: int,
        device="cpu",
        attention_mask: torch.Tensor | None = None,
        attention: str = "sdpa",
        position_ids: torch.Tensor | None = None,
        weights: bool = False,
    ) -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens; the hook's work.

        `attention_mask` (B, T) may have pads in front. `attention` is the model's implementation;
        where it can't do, `kv_step` is among the arguments, which `lib.cache.attention` needs.
        The caller's `position_ids` must be what the cache counts; `weights` are asked of attention.
        """
        require_int("n", n, 1)
        if self._midway or self.under_way:
            raise RuntimeError("the step before failed midway: reset() the cache and begin again")
        if self.layers[0].recording == math.inf and self.prefill == "dense":
            self._require_whole(self.seen + n)
        self._take_pads(attention_mask, n, attention)
        check_positions(position_ids, self._places(n, device), self.seen)
        padded = self.store.pads is not None
        lost = self.store.lost(n, self.seen, device) if weights and padded else None
        ours = lost is None and (self.store.scored or not self.store.is_plain(n, self.seen))
        check_output_attentions(weights, ours or self.static)
        self._midway = True
        self._rebase(n)
        step = self._begin(n, device)
        step.lost, self._midway = lost, False
        self.announced = self._position_ids(n, device)
        kwargs = {"past_key_values": self, "position_ids": self.announced}
        if ours:
            if self.store.scored:
                # a copy, so that no cycle of layers, step and layers keeps the cache in memory
                step = replace(step, layers=self.layers)
            kwargs |= carrier(step, device, self.dtype)
        elif lost is not None:
            kwargs["attention_mask"] = mask_of_text(step, device, self.dtype)
        elif n == 1 and (padded or self.static):
            check_takes_masks(attention)
            size = self.store.size if self.static else None
            kwargs["attention_mask"] = mask_of_one(step, size, device, self.dtype)
        elif n == 1 and attention == "eager":  # its own mask would have the length of layer 0
            kwargs["attention_mask"] = no_mask(device, self.dtype)
        else:
            kwargs["attention_mask"] = attention_mask if padded and step.dense else None
        if self.static and n == 1:
            self._finish()
        return kwargs

    def _begin(self, n: int, device) -> Step:
        """Plan the step and tell the layers."""
        step = Step(n, self.seen, self.position, self.ropes, shares=self.shares)
        self.store.plan(step, self.layers, device)
        for layer in self.layers:
            layer.step = step
        self._step = step
        return step

    def _finish(self) -> None:
        """All layers have the new tokens: count them."""
        step, self._step = self._step, None
        self.seen += step.n
        self.position += step.n
        self.store.settle(step)
        self._midway = False

    def _rebase(self, n: int) -> None:
        """Keep positions small; distances, all that RoPE sees, stay the same."""
        to, table = max(self.cached_lengths), self.last_position
        if table is not None and self.store.pads is not None:  # no table knows places below 0
            to += int(self.store.pads.max())
        highest = min(to + max(REBASE_EVERY, n), table or math.inf)
        # sinks count as rotated where they stand in the text: not before all rows have theirs
        if self.turns and self.position + n > highest and not self.store.awaits_sinks(self.seen):
            self.store.rebase(self.layers, self.seen, self.position, to)
            self.position = to

    def _places(self, n: int, device) -> torch.Tensor | int:
        """Where the next `n` tokens stand in their rows' texts, (1 or B, n) or one for all."""
        columns = self.seen if n == 1 else torch.arange(self.seen, self.seen + n, device=device)
        return columns if self.store.pads is None else columns - self.store.pads

    def _position_ids(self, n: int, device) -> torch.Tensor:
        """(1 or B, n)"""
        positions = torch.arange(self.position, self.position + n, device=device)[None]
        if self.store.pads is not None:
            positions = positions - self.store.pads
        check_table(self.last_position, self.position + n)
        if self.turns and self.last_position is None:
            return positions
        return positions.clamp(min=0)  # pads stand below, which no table knows

    def _take_pads(self, attention_mask, n: int, attention: str) -> None:
        """Note how many pads each row has in front; refuse what can't be kept exact."""
        pads = new_pads(attention_mask, n, self.seen, self.store.pads)
        if pads is None:
            return
        name, ok = self.compressor.name, self.compressor.window is not None
        require(ok, "attention_mask", "padding", f"rows of one length for {name}, or batch size 1")
        check_takes_masks(attention)
        self.store.pads = pads
