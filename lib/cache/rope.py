"""What turns the keys of a model, layer by layer; models for which nothing can are refused."""

import sys
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lib.require import require

from .hooks import body_of
from .probe import POSITIONS, LayerProbe, check_scale, probe, rotary_frequencies
from .turning import Rope, fit

# inv_freq of these depends on the length of the text, so a cached key can't be turned
LENGTH_DEPENDENT = ("dynamic", "longrope")
NO_ROPE = (
    "{} has 0 rotary embeddings; in-cache positions need one: positions learned or added before "
    "the layers (GPT-2) can't be turned later (use positions='original', or a RoPE model: Pythia, "
    "Llama)"
)


def length_limit(config: PreTrainedConfig) -> tuple[str, int] | None:
    """The type of a rotation that depends on the length of the text, and from what length on."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    # several where layers rotate differently
    each = [rope] if "rope_type" in rope else [x for x in rope.values() if isinstance(x, dict)]
    for one in each:
        if one.get("rope_type") in LENGTH_DEPENDENT:
            limit = config.max_position_embeddings
            if one["rope_type"] == "longrope":
                limit = one.get("original_max_position_embeddings", limit)
            else:  # transformers takes grown frequencies back for shorter texts, not for as long
                limit -= 1
            return one["rope_type"], limit
    return None


def check_limit(limit: tuple[str, int] | None, tokens: int) -> None:
    """Refuse a text of more `tokens` than the `length_limit` allows."""
    rope_type, highest = limit or (None, tokens)
    what = f"at most {highest}: beyond, rope_type={rope_type!r} changes the keys of all tokens"
    require(tokens <= highest, "tokens", tokens, what)


def check_rope_type(config: PreTrainedConfig) -> None:
    """Refuse rotations that depend on the length of the text: all keys would change with it."""
    limit = length_limit(config)
    if limit is not None:
        raise ValueError(
            f"rope_type={limit[0]!r} depends on the length of the text: a cached key would have to "
            f"change beyond {limit[1]} tokens, and can't (use a dense cache up to there)"
        )


def head_width(config: PreTrainedConfig) -> int:
    """Dimensions of a head's keys."""
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Rotation:
    """What turns a layer's keys in the cache, and its queries; None where nothing is rotated.

    Latent attention (MLA) caches as keys what it makes the values and a part of the keys of, and as
    values the rotated part of the keys: `in_values`.
    """

    cached: Rope | None = None
    queries: Rope | None = None
    width: int = 0  # dims of what is turned in the cache
    in_values: bool = False


def find_rotations(model: torch.nn.Module | PreTrainedConfig) -> list[Rotation]:
    """What turns each layer of a transformers model (or config), found in the model's own keys.

    Raises ValueError for models whose cached keys can't be turned: no rotary embedding (ALiBi,
    learned positions), frequencies that depend on the length of the text, or another rotation than
    of pairs of dims.
    """
    if isinstance(model, PreTrainedConfig):
        return _rotations_of_config(model.get_text_config())
    body = body_of(model)
    check_rope_type(body.config)
    layers = probe(body)
    if body not in _found or _found[body][0] is not layers:
        _found[body] = layers, _rotations(body, layers)
    return _found[body][1]


# by what was found in the model then
_found: WeakKeyDictionary[torch.nn.Module, tuple[list[LayerProbe], list[Rotation]]] = (
    WeakKeyDictionary()
)


@torch.inference_mode(False)
def _rotations(model: torch.nn.Module, layers: list[LayerProbe]) -> list[Rotation]:
    found = rotary_frequencies(model)
    if any(inv_freq.is_meta for inv_freq in found):  # offloaded weights
        found = [x for built in _build(model.config) for x in rotary_frequencies(built)]
    name = f"model_type={model.config.model_type!r}"
    if not found:
        raise ValueError(NO_ROPE.format(name))
    known: list[Rope] = []  # layers that are turned alike share one
    try:
        rotations = [_rotation(layer, found, known) for layer in layers]
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    check_scale(model)
    return rotations


def unturned(model: torch.nn.Module | PreTrainedConfig) -> list[Rotation]:
    """Layers whose keys stay as they come (positions="original")."""
    check_rope_type(model if isinstance(model, PreTrainedConfig) else model.config)
    if isinstance(model, PreTrainedConfig):
        return [Rotation()] * model.get_text_config().num_hidden_layers
    layers = probe(model)
    still = all(x.equal(at.attended[0]) for at in layers for x in at.attended.values())
    if still and not rotary_frequencies(model):
        raise ValueError(f"model_type={model.config.model_type!r} heeds no position ids")
    return [Rotation()] * len(layers)


def find_rope(model: torch.nn.Module | PreTrainedConfig) -> Rope:
    """The `Rope` of a model whose layers are all turned alike; ValueError for any other."""
    first, *others = find_rotations(model)
    alike = first.cached is not None and all(x.cached is first.cached for x in others)
    what = "one whose layers rotate alike"
    require(alike and not first.in_values, "model", type(model).__name__, what)
    return first.cached


def _rotation(layer: LayerProbe, frequencies: list[torch.Tensor], known: list[Rope]):
    cached, values = fit(layer.keys, frequencies), fit(layer.values, frequencies)
    queries = cached if layer.direct else fit(layer.attended, frequencies)
    if values is not None and cached is not None:
        raise ValueError("rotates its values")
    width = (layer.keys if values is None else layer.values)[0].shape[-1]
    cached, queries = (_shared(x, known) for x in (cached or values, queries))
    return Rotation(cached, queries, width, values is not None)


def _shared(rope: Rope | None, known: list[Rope]) -> Rope | None:
    """The one of `known` that is the same, or `rope`, which is known from now on."""
    if rope is None:
        return None
    for other in known:
        same = (rope.start, rope.neighbours) == (other.start, other.neighbours)
        if same and torch.equal(rope.inv_freq, other.inv_freq):
            return other
    known.append(rope)
    return rope


def _rotations_of_config(config: PreTrainedConfig) -> list[Rotation]:
    """`find_rotations` for a config, whose layers must be alike: there are no keys to look at."""
    check_rope_type(config)
    built, name = _build(config), f"model_type={config.model_type!r}"
    frequencies = [x for module in built for x in rotary_frequencies(module)]
    if not frequencies:
        raise ValueError(NO_ROPE.format(name))
    names = ("no_rope_layers", "kv_lora_rank", "num_kv_shared_layers")
    own = (getattr(config, name, None) for name in names)
    alike = not any(own) and len(set(getattr(config, "layer_types", None) or ())) <= 1
    apply = getattr(sys.modules[type(built[0]).__module__], "apply_rotary_pos_emb", None)
    width = head_width(config)
    x = torch.linspace(-1, 1, width).view(1, 1, 1, -1)
    try:
        at = {p: apply(x, x, *built[0](x, torch.tensor([[p]])))[0] for p in POSITIONS}
        ok, rope = alike and len(frequencies) == 1, fit(at, frequencies)
    except (TypeError, RuntimeError, ValueError):
        ok, rope = False, None
    require(ok, "config", name, "one whose layers all rotate alike: make the cache from the model")
    return [Rotation(rope, rope, width)] * config.num_hidden_layers


def _build(config: PreTrainedConfig) -> list[torch.nn.Module]:
    """The rotary embeddings that a model of this config would have."""
    config = config.get_text_config()
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    module = sys.modules[model.__module__] if model else None
    names = [name for name in vars(module or object) if name.endswith("RotaryEmbedding")]
    built = [getattr(module, name)(config) for name in names]
    return [m for m in built if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]
