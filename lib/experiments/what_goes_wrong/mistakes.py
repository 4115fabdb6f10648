"""Mistakes that KV-cache projects made, on purpose, to measure what each costs. Use none of them.

Each is a cache or a compressor that does one thing wrong; its docstring names it. What it is
compared with is in `cases.py`, and how in `runs.py`.
"""

import torch

from lib.cache.baseline import OriginalPositions, held_lengths
from lib.cache.compressed import CompressedCache
from lib.cache.step import additive
from lib.compressors import Compressor
from lib.compressors.base import Around, Held, key_norms
from lib.compressors.functions import compress
from lib.require import require


class DenseInChunk(OriginalPositions):
    """Mistake: a chunk is cut only after it, so that a token sees all of its chunk before it.

    Perplexity then depends on the chunk, and flatters: with a chunk of the whole text it is that of
    dense attention. In chunks of one token this is right, with keys where they were rotated; so it
    is where a method that looks at the keys is meant to cut once in `every` tokens.
    """

    def __init__(self, model, compressor: Compressor, every: int = 1):
        super().__init__(model)
        self.compressor = compressor
        self.every = every  # compressed after steps that end at a multiple of it
        self.due = False  # whether the step under way is one of them
        self.number = model.config.get_text_config().num_hidden_layers
        self.dtype = model.dtype
        self.compressions = 0  # of the whole cache
        self.cuts = [0] * self.number  # per layer: compressions in which it lost tokens

    @property
    def evictions(self) -> int:
        """How often the layer was cut that was cut most."""
        return max(self.cuts)

    def step(self, n: int, device="cpu", *args, **kwargs) -> dict:
        self.due = (self.seen + n) % self.every == 0
        return super().step(n, device)

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        uncut = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.number - 1:
            self.compress()
        return uncut

    def compress(self) -> None:
        """Cut all layers, if it is time."""
        if not self.due:
            return
        before = held_lengths(self)
        compress(self, self.compressor)
        self.compressions += 1
        for layer_idx, (old, new) in enumerate(zip(before, held_lengths(self), strict=True)):
            self.cuts[layer_idx] += new < old


class EagerEviction(DenseInChunk):
    """Mistake: cutting before attention, so that what was cut is missing in the current step.

    Token by token the window is one token short; in a chunk, or a prompt, longer than the window a
    token does not even see itself. For position-only methods.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__(model, compressor)
        self.window = window = compressor.window
        # with no sink a token of a long chunk would see nothing at all
        ok = window is not None and window.start_size > 0
        require(ok, "compressor", compressor, "a position-only method with sinks")

    def step(self, n: int, device="cpu", *args, **kwargs) -> dict:
        kwargs = super().step(n, device)
        queries, end = kwargs["position_ids"][0], self.seen + n
        held = torch.arange(end, device=device)
        held = held[(held < self.window.start_size) | (held >= end - self.window.recent_size)]
        visible = held <= queries[:, None]  # (n, S)
        return kwargs | {"attention_mask": additive(visible[None], self.dtype)}

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        uncut = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        (cut,) = compress([uncut], self.compressor)
        self.layers[layer_idx].keys, self.layers[layer_idx].values = cut
        return cut


class HookInEveryLayer(DenseInChunk):
    """Mistake: a hook on every layer's attention compresses the whole cache, not its own layer.

    A method that keeps a share is then applied as many times as there are layers. Only single
    tokens can be fed after the first step: within a step layers hold different numbers of tokens.
    """

    def __init__(self, model, compressor: Compressor, every: int = 1):
        super().__init__(model, compressor, every)
        attentions = [module for module in model.modules() if hasattr(module, "layer_idx")]
        # after the last layer the cache is compressed anyway
        hooked = attentions[: self.number - 1]
        self.handles = [x.register_forward_hook(lambda *_: self.compress()) for x in hooked]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


class LengthOfLayer0(CompressedCache):
    """Mistake: the next position is the number of tokens that layer 0 holds.

    transformers does just this where no positions are given (`get_seq_length()` of layer 0). Once
    layer 0 is cut, the position stands still and the order of the text is lost in all layers.
    """

    def __init__(self, model, compressor: Compressor):
        super().__init__(model, compressor, positions="original")

    def step(self, n: int, device="cpu", *args, **kwargs) -> dict:
        held = self.cached_lengths[0]
        position_ids = torch.arange(held, held + n, device=device)[None]
        return super().step(n, device, *args, **kwargs) | {"position_ids": position_ids}


class Unsorted(Around):
    """Mistake: what `topk` gives is not sorted, so the cache holds its tokens by score.

    Lowest norms come first. At the next cut the last places are not the recent tokens, and the
    first ones need not be the sinks; where kept tokens are given positions in their order,
    positions are shuffled at once.
    """

    def keep(self, held: Held) -> torch.Tensor | None:
        index = super().keep(held)
        if index is None:
            return None
        norms = key_norms(held.keys)
        index = index.expand(*norms.shape[:2], -1)
        order = norms.gather(-1, index).argsort(dim=-1, stable=True)
        return index.gather(-1, order)
