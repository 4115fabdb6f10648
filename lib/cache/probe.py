"""What each layer of a model caches and attends by, found by feeding it single tokens.

A token that is alone attends to itself, whatever its position: fed at several positions, its keys
differ by their rotation only, in every layer. What a model's code calls these things, which of its
layers rotate and which dims, need not be known.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from .checks import input_device

NAME = "kv_lab_probe"
POSITIONS = (0, 3, 31)  # that tokens are fed at
TOKENS = 4  # that are fed
# tensors that attention may be given: learned sinks, and what says nothing about logits
KNOWN = {"s_aux", "position_ids", "cache_position"}


@dataclass
class LayerProbe:
    """One layer's tensors, (TOKENS * H, D) by position; `options` are those its attention gets."""

    attended: dict[int, torch.Tensor]
    options: dict
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    @property
    def direct(self) -> bool:
        """Whether the cached keys are those that queries meet, as in all but latent attention."""
        return self.attended[0].equal(self.keys[0])


class ProbedCache(DynamicCache):
    """A `DynamicCache` that no hook takes for the one of a stream."""


class Recorder:
    """Notes what attention is given, layer by layer."""

    def __init__(self):
        self.calls: list[tuple[int, torch.Tensor, dict]] = []


def probe_attention(
    module, query, key, value, attention_mask, dropout=0.0, kv_probe=None, **options
):
    """Attention of tokens that are alone, (rows, H, 1, D): their values."""
    if kv_probe is not None:
        options["attention_mask"] = attention_mask
        kv_probe.calls.append((getattr(module, "layer_idx", None), key, options))
    groups = query.shape[1] // value.shape[1]
    return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, probe_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
_known: WeakKeyDictionary[torch.nn.Module, list[LayerProbe]] = WeakKeyDictionary()


def probe(model: torch.nn.Module) -> list[LayerProbe]:
    """What each of the model's layers caches and attends by; found once for every model.

    Raises ValueError for a model that doesn't cache keys and values in all its layers, or whose
    attention can't be exchanged.
    """
    if model not in _known:
        _known[model] = _probe(model)
    return _known[model]


def _probe(model) -> list[LayerProbe]:
    config = model.config.get_text_config()
    cache, recorder = ProbedCache(config=config), Recorder()
    tokens = torch.arange(1, TOKENS + 1) * config.vocab_size // (TOKENS + 1)
    rows = {
        "input_ids": tokens.repeat_interleave(len(POSITIONS))[:, None],
        "position_ids": torch.tensor(POSITIONS).repeat(TOKENS)[:, None],
    }
    rows = {name: x.to(input_device(model)) for name, x in rows.items()}
    own, modes = model.config._attn_implementation, [m.training for m in model.modules()]
    try:
        model.set_attn_implementation(NAME)
        model.eval()
        with torch.no_grad():
            model.base_model(**rows, past_key_values=cache, use_cache=True, kv_probe=recorder)
    except (TypeError, RuntimeError, AttributeError, NameError, IndexError) as error:
        what = f"{_name(model)} can't be run with an attention of ours: {error}"
        raise ValueError(what) from error
    finally:
        model.set_attn_implementation(own)
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training
    return [_layer(model, cache, recorder, number) for number in range(len(cache.layers))]


def _layer(model, cache, recorder: Recorder, number: int) -> LayerProbe:
    held = [getattr(cache.layers[number], name, None) for name in ("keys", "values")]
    whole = all(x is not None and x.ndim == 4 and x.shape[2] == 1 for x in held)
    if not whole or isinstance(cache.layers[number], LinearAttentionCacheLayerMixin):
        raise ValueError(
            f"{_name(model)}: layer {number} caches a state (of a convolution or recurrence), from "
            "which tokens can't be taken, not keys and values alone"
        )
    calls = [call for call in recorder.calls if call[0] == number]
    if len(calls) != 1:
        raise ValueError(
            f"{_name(model)}: layer {number} asks {len(calls)} times for its attention, not once"
        )
    _, attended, options = calls[0]
    more = [name for name, x in options.items() if isinstance(x, torch.Tensor)]
    more = sorted(set(more) - KNOWN)
    if more:
        raise ValueError(f"{_name(model)}: layer {number} lays its own {more} over its attention")
    by_position = (
        {p: x.unflatten(0, (TOKENS, -1))[:, i].flatten(0, 2) for i, p in enumerate(POSITIONS)}
        for x in (attended, *held)
    )
    attended, keys, values = by_position
    return LayerProbe(attended, options, keys, values)


def _name(model) -> str:
    return f"model_type={model.config.model_type!r}"
