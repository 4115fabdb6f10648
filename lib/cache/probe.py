"""What each layer of a model caches and attends by, found by feeding it single tokens.

A token that is alone attends to itself, whatever its position: fed at several positions, its keys
differ by their rotation only, in every layer. What a model's code calls these things, which of its
layers rotate and which dims, need not be known.
"""

import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from .checks import input_device
from .hooks import Recorder, body_of, by_mask_only, carrier
from .own_attention import check_attention

POSITIONS = (0, 3, 31)  # that tokens are fed at
TOKENS = 4  # that are fed
FAR = 1 << 20  # a position at which a scale that depends on it shows
TABLE = "embed_positions"  # where GPT-J and CodeGen keep sine and cosine of each position
# tensors that attention may be given: learned sinks, and what says nothing about logits
KNOWN = {"s_aux", "position_ids", "cache_position"}


@dataclass
class LayerProbe:
    """One layer's tensors, (TOKENS * H, D) by position; `options` are those its attention gets.

    `attended` are the keys that queries meet, `keys` and `values` what is cached, of `heads` heads,
    and `readers` the layers that attend to it, once for each time: this one, and who shares it.
    """

    attended: dict[int, torch.Tensor]
    options: dict
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    heads: int
    readers: list[int]
    direct: bool  # whether what is cached is what queries meet, head by head (not latents)

    @property
    def shared(self) -> bool:
        """Whether all heads share what is cached, though it isn't the keys that queries meet."""
        return self.heads == 1 and not self.direct


Found = tuple[list[torch.Tensor], list[LayerProbe]]
# by a model's body, which a wrapper and every head share, with its frequencies at that time
_known: WeakKeyDictionary[torch.nn.Module, Found] = WeakKeyDictionary()
_feeding = threading.RLock()  # a model is evaluating meanwhile, whoever trains it


def probe(model: torch.nn.Module) -> list[LayerProbe]:
    """What each of the model's layers caches and attends by; found once for its frequencies.

    Raises ValueError for a model that doesn't cache keys and values in all its layers, or whose
    attention can't be exchanged.
    """
    body = body_of(model)
    with _feeding:
        now, (before, layers) = rotary_frequencies(body), _known.get(body, ([], None))
        if layers is None or not _same(before, now):
            layers = _probe(body)
            _known[body] = [x.clone() for x in now], layers
    return layers


def rotary_frequencies(model: torch.nn.Module) -> list[torch.Tensor]:
    """The rotary frequencies in the model, each once: several if layers rotate differently."""
    found: list[torch.Tensor] = []
    for name, buffer in model.named_buffers():
        if name.endswith(TABLE) and buffer.ndim == 2:
            dim = buffer.shape[1]
            buffer = 1 / 10000 ** (torch.arange(0, dim, 2, device=buffer.device) / dim)
        elif not name.endswith("inv_freq") or "original" in name:
            continue
        if not any(torch.equal(buffer, other) for other in found):
            found.append(buffer)
    return found


def last_position(model: torch.nn.Module) -> int | None:
    """How many positions a model has that looks them up in a table, which ends; else None."""
    if any(name.endswith("inv_freq") for name, _ in model.named_buffers()):
        return None
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _same(before: list[torch.Tensor], now: list[torch.Tensor]) -> bool:
    """Whether frequencies are the same; of offloaded ones (on "meta") nothing is known."""
    return len(before) == len(now) and all(
        x.dtype == y.dtype and (y.is_meta or (not x.is_meta and torch.equal(x.to(y.device), y)))
        for x, y in zip(before, now, strict=True)
    )


@torch.inference_mode(False)
def _probe(model) -> list[LayerProbe]:
    check_attention(model)
    config = model.config.get_text_config()
    cache = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):  # as many as are known before a step
        _check_kind(model, number, layer)
    tokens = torch.arange(1, TOKENS + 1) * config.vocab_size // (TOKENS + 1)
    tokens = tokens.repeat_interleave(len(POSITIONS))[:, None].to(input_device(model))
    positions = torch.tensor(POSITIONS).repeat(TOKENS)[:, None].to(tokens.device)
    calls = _feed(model, cache, tokens, positions)
    own = [x for x, layer in enumerate(cache.layers) if type(layer) is not DummyLayer]
    if own != list(range(len(own))):
        raise ValueError(f"{_name(model)}: a layer between others caches nothing")
    layers = [_layer(model, cache, calls, number) for number in own]
    if len(cached_by(layers)) != len({id(call[0]) for call in calls}):
        raise ValueError(f"{_name(model)}: a layer attends to keys that are not in the cache")
    at = layers[0].attended
    if not all(_alike(x.norm(dim=-1), at[0].norm(dim=-1)) for x in at.values()):
        # positions are not rotated: the model's own must begin where ours do
        _, _, keys, *_ = _feed(model, DynamicCache(config=config), tokens, None)[0]
        if not _alike(_by_position(keys)[0], at[0]):
            raise ValueError(f"{_name(model)} doesn't count its positions from 0")
    return layers


def cached_by(layers: list[LayerProbe]) -> list[int]:
    """Which layer of the cache each of the model's layers attends to."""
    source = {reader: i for i, layer in enumerate(layers) for reader in layer.readers}
    return [source[reader] for reader in sorted(source)]


def check_scale(model) -> None:
    """Refuse a model that makes queries longer with their position, as RoPE alone never does.

    Such a query means another place in the text than the one that it has in the cache.
    """
    config = model.config.get_text_config()
    tokens = torch.arange(1, TOKENS + 1) * config.vocab_size // (TOKENS + 1)
    tokens = tokens.repeat(2)[:, None].to(input_device(model))
    far = min(FAR, (last_position(model) or FAR) - 1)
    positions = torch.tensor([0, far]).repeat_interleave(TOKENS)[:, None].to(tokens.device)
    with _feeding:
        calls = _feed(model, DynamicCache(config=config), tokens, positions)
    for number, (_, query, *_) in enumerate(calls):
        near, far = query.norm(dim=-1).chunk(2)
        if not torch.allclose(near, far, rtol=0.02):
            raise ValueError(
                f"{_name(model)}: layer {number} scales its queries by their position in the text, "
                "which in-cache positions don't keep (use positions='original')"
            )


def _feed(model, cache: DynamicCache, tokens, positions) -> list[tuple]:
    """Feed each of `tokens` (rows, 1) alone; module, query, key, value and options each.

    By the body's `forward`: no step of a stream is announced. Attention is reached as in a step.
    """
    recorder, modes = Recorder(), [m.training for m in model.modules()]
    given = {"input_ids": tokens, "past_key_values": cache, "use_cache": True}
    given |= carrier(recorder, tokens.device, model.dtype) | {"position_ids": positions}
    if by_mask_only(model):
        del given["kv_step"]
    if positions is None:  # some models count them by the mask
        del given["position_ids"], given["attention_mask"]
    try:
        model.eval()
        with torch.no_grad():
            model.forward(**given)
    except IndexError as error:
        raise ValueError(f"{_name(model)} caches other layers than its config tells") from error
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        what = f"{_name(model)} can't be run with an attention of ours: {error}"
        raise ValueError(what) from error
    finally:
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training
    if not recorder.calls:
        what = "keeps its arguments from its attention, which can't be told what a step may see"
        raise ValueError(f"{_name(model)} {what}")
    return recorder.calls


def _by_position(x: torch.Tensor) -> dict[int, torch.Tensor]:
    """(TOKENS * len(POSITIONS), H, 1, D) as (TOKENS * H, D) by position."""
    x = x.unflatten(0, (TOKENS, -1))
    return {p: x[:, i].flatten(0, 2) for i, p in enumerate(POSITIONS)}


def _alike(x: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(x, other, rtol=0.05, atol=0.05 * other.abs().max().item())


def _check_kind(model, number: int, layer) -> None:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        what = "a state (of a convolution or recurrence), from which tokens can't be taken"
    elif type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer):
        what = "more than keys and values (sparse attention)"
    else:
        return
    raise ValueError(f"{_name(model)}: layer {number} caches {what}")


def _layer(model, cache, calls: list, number: int) -> LayerProbe:
    held = [getattr(cache.layers[number], name, None) for name in ("keys", "values")]
    if not all(x is not None and x.ndim == 4 and x.shape[2] == 1 for x in held):
        raise ValueError(f"{_name(model)}: layer {number} caches no keys and values")
    of_layer = [call for call in calls if getattr(call[0], "layer_idx", None) == number]
    if len({id(call[2]) for call in of_layer}) != 1:
        raise ValueError(
            f"{_name(model)}: layer {number} attends to {len(of_layer)} sets of keys, not to one"
        )
    _, _, attended, given, options = of_layer[0]
    if not all(x.isfinite().all() for x in (attended, *held)):
        raise ValueError(f"{_name(model)}: layer {number} gives NaN or infinite keys or values")
    if not any(x.any() for x in held):
        raise ValueError(f"{_name(model)}: layer {number} gives zeros (are its weights loaded?)")
    more = sorted(name for name, x in options.items() if name not in KNOWN and _says(x))
    if more:
        raise ValueError(f"{_name(model)}: layer {number} lays its own {more} over its attention")
    readers = [call[0].layer_idx for call in calls if call[2] is attended]
    direct = attended.equal(held[0]) and given.equal(held[1])
    attended, keys, values = (_by_position(x) for x in (attended, *held))
    return LayerProbe(attended, options, keys, values, held[0].shape[1], readers, direct)


def _says(option) -> bool:
    """Whether an option of attention is a tensor that is more than a mask that hides nothing."""
    if not isinstance(option, torch.Tensor):
        return False
    return not bool(option.all()) if option.dtype == torch.bool else bool(option.any())


def _name(model) -> str:
    return f"model_type={model.config.model_type!r}"
