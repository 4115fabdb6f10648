"""A transformers Cache that lets a compressor decide which tokens stay.

    cache = CompressedCache(model, StreamingLLM(4, 508))
    model.generate(**inputs, past_key_values=cache)

Each forward pass is one step. Before it, a hook on the model asks the cache for the step's position
ids and masks (`CompressedCache.step`); only a step of several tokens in which old ones leave, and
any step of a method that scores tokens by attention, needs attention of our own, `lib.attention`,
and gets it for that step alone.
"""

import copy

import torch
from transformers import PreTrainedConfig

from .checks import check_config, check_method, check_model, left_pads
from .compressors import Compressor
from .compressors.base import require, require_int
from .hooks import Announced, attach
from .layers import Layer, WindowLayer
from .rope import find_rope, head_width, rotary_embeddings
from .scattered import ScatteredLayer
from .slots import Slots
from .steps import Step, mask_of_one, plan

# float32 angles lose precision with the position, so positions start again every so many tokens
REBASE_EVERY = 1024
NO_MASK = ("flash_attention_2", "flash_attention_3", "flex_attention")


class CompressedCache(Announced):
    """A cache under one of our compressors, for any RoPE model: pass it as `past_key_values`.

    `buffer`: the cache may grow by so many tokens before it is cut (lazy eviction).
    `positions="in_cache"` counts distances inside the cache (keys are turned, in float32);
    `"original"` leaves keys as they were rotated, with gaps where tokens were cut.
    `prefill="streamed"`: each token of a prompt sees its own window; `"dense"`: the prompt sees
    all of itself and is cut afterwards, as it always is for methods that look at the keys (with
    padding its mask grows with the square of its length).
    `static`: steps of one token have fixed shapes, for torch.compile.
    Made from a config alone, it can't know of padding or attention, nor stream a prompt past the
    budget.
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
        model = None if isinstance(model_or_config, PreTrainedConfig) else model_or_config
        config = (model_or_config if model is None else model.config).get_text_config()
        check_config(config, compressor, buffer)
        self.rope = find_rope(model_or_config) if positions == "in_cache" else None
        # without rotation positions are looked up in a table, which ends
        learned = model is not None and not rotary_embeddings(model)
        self.last_position = config.max_position_embeddings if learned else None
        self.dtype = getattr(model_or_config, "dtype", None) or torch.float32
        self.width = head_width(config)
        window = compressor.window
        require(window or not static, "static", static, "False for methods that look at the keys")
        self.slots = Slots(window, buffer) if window else None
        super().__init__(layers=self._layers(config.num_hidden_layers))
        # whether tokens are scored by attention
        self.scored = self.slots is None and any(layer.queries for layer in self.layers)
        self.seen = 0  # tokens of the stream so far
        self.position = 0  # position of the next token
        self._step: Step | None = None  # the one under way
        if model is not None:
            check_model(model)
            attach(model)

    def _layers(self, number: int) -> list[Layer]:
        if self.slots is not None:
            return [WindowLayer(self.slots, self.rope, self.static) for _ in range(number)]
        each = (number, self.compressor, self.buffer, self.rope)
        return [ScatteredLayer(i, *each) for i in range(number)]

    def __repr__(self) -> str:
        return (
            f"CompressedCache({self.compressor}, budget={self.compressor.budget}, "
            f"buffer={self.buffer}, positions={self.positions!r}, prefill={self.prefill!r}, "
            f"seen={self.seen}, cached_lengths={self.cached_lengths})"
        )

    def reset(self) -> None:
        """Forget everything: the next token begins a new stream."""
        self.seen = self.position = 0
        self._step = None
        if self.slots is not None:
            self.slots.reset()
        for layer in self.layers:
            layer.reset()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the stream seen so far, kept or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys the next `query_length` tokens are given, and the index of the first of them."""
        if self.static and query_length == 1:  # a step that was announced has its mask
            raise RuntimeError("a static cache needs its steps announced: call the model itself")
        held = self.cached_lengths[layer_idx]
        return held + query_length, self.seen - held

    @property
    def cached_lengths(self) -> list[int]:
        """Tokens held now, per layer."""
        if self.slots is not None:
            return [min(self.slots.used(self.seen), self.seen)] * len(self.layers)
        return [layer.length for layer in self.layers]

    @property
    def evictions(self) -> int:
        """How often some layer was cut."""
        if self.slots is not None:
            return self.slots.cuts(self.seen)
        return max(layer.evictions for layer in self.layers)

    @property
    def evicted(self) -> int:
        """Tokens that have left the layer that lost most."""
        if self.slots is not None:
            return self.slots.evicted(self.seen)
        return max(layer.evicted for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes allocated: keys, values, the keys kept un-turned, and attention received."""
        return sum(x.nbytes for layer in self.layers for x in layer.tensors().values())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`, as many as there are: the beams that go on."""
        super().reorder_cache(beam_idx)
        if self.slots is not None:
            self.slots.take(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        for layer in self.layers:
            layer.take(indices)
        if self.slots is not None:
            self.slots.take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have each row `repeats` times."""
        if self.seen:
            rows = len(self.layers[0].keys)
            self.batch_select_indices(torch.arange(rows).repeat_interleave(repeats))

    def crop(self, *args) -> None:
        """Refused: what was fed can't be taken back (assisted decoding)."""
        raise ValueError("a CompressedCache can't be cropped: tokens that left it can't come back")

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """What attention may see: all that is cached, and the new tokens (B, H, n, D)."""
        n = key_states.shape[2]
        if self.static and n == 1:  # counted beforehand: nothing here may change under compile
            return self.layers[layer_idx].update(key_states, value_states)
        if self._step is None or self._step.n != n:
            self._unannounced(key_states)
        self._step.written = True
        states = self.layers[layer_idx].update(key_states, value_states)
        if layer_idx == len(self.layers) - 1:
            self._finish()
        return states

    def _unannounced(self, key_states) -> None:
        """A step that no hook saw: right as long as plain causal attention is."""
        n, held = key_states.shape[2], self.cached_lengths
        simple = n == 1 or self._is_plain(n) or (self.slots is None and len(set(held)) == 1)
        simple &= not self.scored and (self.slots is None or self.slots.pads is None)
        if not simple or self.position != self.seen:
            raise RuntimeError(
                f"a step of {n} tokens after {self.seen} needs masks, positions or scores that "
                "only the model's hook gives: make the cache from the model, "
                "CompressedCache(model, ...), and call that model"
            )
        self._make_room(n)
        self._begin(n, key_states.device)

    def _is_plain(self, n: int) -> bool:
        """Whether `n` tokens more see everything before them, so that any attention will do."""
        if self.slots is None:
            return self.seen == 0
        fits = self.seen + n <= self.slots.budget + self.slots.buffer
        return self._is_dense(n) or (fits and self.slots.pads is None)

    def _is_dense(self, n: int) -> bool:
        return self.prefill == "dense" and self.seen == 0 and n > 1

    def step(self, n: int, device="cpu", attention_mask=None, attention: str = "sdpa") -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens; the hook's work.

        `attention_mask` (B, T) may have pads in front. `attention` is the model's implementation;
        where it can't do, `kv_step` is among the arguments, which `lib.attention` needs.
        """
        require_int("n", n, 1)
        if self._step is not None and self._step.written:
            raise RuntimeError("the step before failed midway: reset() the cache and begin again")
        self._take_pads(attention_mask, n, attention)
        self._make_room(n)
        self._rebase(n)
        step = self._begin(n, device)
        kwargs = {"past_key_values": self, "position_ids": self._position_ids(n, device)}
        pads = None if self.slots is None else self.slots.pads
        if self.scored:
            kwargs |= {"attention_mask": None, "kv_step": step}
        elif n == 1 and (pads is not None or self.static):
            require(attention not in NO_MASK, "attn_implementation", attention, "'sdpa' or 'eager'")
            size = self.slots.size if self.static else None
            kwargs["attention_mask"] = mask_of_one(step, size, device, self.dtype)
        elif n == 1 and attention == "eager":  # its own mask would have the length of layer 0
            kwargs["attention_mask"] = torch.zeros(1, 1, 1, 1, device=device, dtype=self.dtype)
        else:
            padded = pads is not None and self._is_dense(n)
            kwargs["attention_mask"] = attention_mask if padded else None
            if n > 1 and not self._is_plain(n):
                kwargs["kv_step"] = step
        if self.static and n == 1:
            self._finish()
        return kwargs

    def _begin(self, n: int, device) -> Step:
        """Plan the step and tell the layers."""
        layers = self.layers if self.scored else None
        step = Step(n, self.seen, self.position, self.slots, self.rope, layers)
        if self.slots is not None:
            plan(step, self._is_dense(n), self.width, device, self.dtype)
        for layer in self.layers:
            layer.step = step
        self._step = step
        return step

    def _finish(self) -> None:
        """All layers have the new tokens: count them."""
        step, self._step = self._step, None
        self.seen += step.n
        self.position += step.n
        if self.slots is not None:
            cut = step.held + step.n - step.held_after
            self.slots.first = step.first + cut if step.n == 1 else 0
            placed = step.n > 1 or step.sink_slots is not None
            turned = step.n > 1 and step.held_after < self.seen  # written un-turned
            self.slots.stale = cut > 0 or turned or (self.slots.stale and not placed)

    def _make_room(self, n: int) -> None:
        """Move the held tokens to the front of the buffer where the next one would not fit."""
        slots = self.slots
        if slots is None or n > 1 or slots.first + slots.used(self.seen) < slots.size:
            return
        for layer in self.layers:
            layer.move(slots.first, slots.used(self.seen))
        slots.first = 0

    def _rebase(self, n: int) -> None:
        """Keep positions small; distances, all that RoPE sees, stay the same."""
        longest, slots = max(self.cached_lengths), self.slots
        if self.rope is None or self.position + n <= longest + max(REBASE_EVERY, n):
            return
        shift, self.position = self.position - longest, longest
        for layer in self.layers:
            if slots is None:
                layer.turn_to(self.position)
            else:
                front, end = slots.front(self.seen), slots.used(self.seen)
                layer.rebase(shift, slice(slots.first + front, slots.first + end))
        if slots is not None:
            slots.stale = True

    def _position_ids(self, n: int, device) -> torch.Tensor:
        """(1 or B, n)"""
        positions = torch.arange(self.position, self.position + n, device=device)[None]
        if self.slots is not None and self.slots.pads is not None:
            positions = positions - self.slots.pads
        if self.last_position is not None:
            highest = self.position + n
            require(highest <= self.last_position, "tokens", highest, f"<= {self.last_position}")
        return positions if self.rope is not None else positions.clamp(min=0)

    def _take_pads(self, attention_mask, n: int, attention: str) -> None:
        """Note how many pads each row has in front; refuse what can't be kept exact."""
        if attention_mask is None:
            return
        if n == 1 and self.seen > 0 and attention_mask.ndim == 2:
            ok = bool(attention_mask[:, -1].all())
            return require(ok, "attention_mask", "0 for a new token", "padding on the left only")
        before = left_pads(attention_mask, self.seen + n)
        known = torch.zeros_like(before) if self.slots is None else self.slots.pads
        known = torch.zeros_like(before) if known is None else known
        if torch.equal(before, known):
            return
        # a row may have had nothing but pads up to here
        ok = bool((known == self.seen)[before != known].all())
        require(ok, "attention_mask", "new padding", "the padding of the tokens before")
        name = self.compressor.name
        ok = self.slots is not None
        require(ok, "attention_mask", "padding", f"rows of one length for {name}, or batch size 1")
        require(attention not in NO_MASK, "attn_implementation", attention, "'sdpa' or 'eager'")
        self.slots.pads = before
