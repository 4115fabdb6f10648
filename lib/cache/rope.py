"""Turning cached keys (and queries) to a new position.

RoPE rotates a key at position p by the angles p * inv_freq, and rotations add up: a key that
stands at p is moved to p + delta by rotating it once more by delta * inv_freq. Often only some
leading dims of a head are rotated (GPT-NeoX: 25%, Llama: all); the rest stay as they are.
"""

import sys
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lib.require import require

from .probe import POSITIONS, LayerProbe, probe

# inv_freq of these depends on the length of the text, so a cached key can't be turned
LENGTH_DEPENDENT = ("dynamic", "longrope")
NO_ROPE = (
    "{} has 0 rotary embeddings; in-cache positions need one: positions learned or added before "
    "the layers (GPT-2) can't be turned later (use positions='original', or a RoPE model: Pythia, "
    "Llama)"
)


@dataclass(eq=False)
class Rope:
    """The rotary frequencies `inv_freq`, (rotary_dim / 2,), and what turns keys by them.

    The dims start .. start + rotary_dim are rotated: i with i + rotary_dim / 2, or each even one
    with its neighbour.
    """

    inv_freq: torch.Tensor
    start: int = 0
    neighbours: bool = False

    @property
    def rotary_dim(self) -> int:
        """How many dims of a head are rotated."""
        return 2 * len(self.inv_freq)

    def _cos_sin(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the angles by which `delta` (...,) turns: (..., rotary_dim / 2) each."""
        dtype = torch.float32 if delta.device.type == "mps" else torch.float64  # mps has no float64
        angles = delta[..., None].to(dtype) * self.inv_freq.to(delta.device, dtype)
        return angles.cos(), angles.sin()

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`x` (..., D): the dims before the rotated ones, their two parts, and those behind."""
        stop = self.start + self.rotary_dim
        before, rotated, behind = x.tensor_split((self.start, stop), dim=-1)
        if self.neighbours:
            return before, rotated[..., ::2], rotated[..., 1::2], behind
        return before, *rotated.chunk(2, dim=-1), behind

    def _join(self, before, x1, x2, behind) -> torch.Tensor:
        """What `_split` takes apart."""
        if self.neighbours:
            return torch.cat((before, torch.stack((x1, x2), dim=-1).flatten(-2), behind), dim=-1)
        return torch.cat((before, x1, x2, behind), dim=-1)

    def cos_sin(self, delta: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for shifts `delta` (...,): (..., width) each, for heads of `width` dims.

        Dims that are not rotated have 1 and 0: `x * cos + half(x) * sin` is `x`, turned.
        """
        twice = [x.repeat_interleave(2, -1) if self.neighbours else torch.cat((x, x), dim=-1)
                 for x in self._cos_sin(delta)]  # fmt: skip
        around = (self.start, width - self.start - self.rotary_dim)
        return pad(twice[0], around, value=1.0), pad(twice[1], around)

    def half(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., D) with its rotated pairs (x1, x2) as (-x2, x1), and zeros for the rest."""
        before, x1, x2, behind = self._split(x)
        return self._join(torch.zeros_like(before), -x2, x1, torch.zeros_like(behind))

    def turn(self, x: torch.Tensor, delta: torch.Tensor | int) -> torch.Tensor:
        """Move `x` (B, H, T, D) by `delta` positions: an int, or a tensor that broadcasts to its T.

        Computed in float32 (float64 for float64 input) and returned in the dtype of `x`.
        """
        exact = torch.promote_types(x.dtype, torch.float32)
        delta = torch.as_tensor(delta, device=x.device)
        cos, sin = (angle.to(exact) for angle in self._cos_sin(delta))
        before, x1, x2, behind = self._split(x.to(exact))
        return self._join(before, x1 * cos - x2 * sin, x2 * cos + x1 * sin, behind).to(x.dtype)


def fit(at: dict[int, torch.Tensor], frequencies: list[torch.Tensor]) -> Rope | None:
    """What turns the keys at position 0 of `at`, (..., D) by position, into those at the others.

    None if they are the same. ValueError if no pairing of dims, with any of `frequencies`, does.
    """
    origin, width = at[0], at[0].shape[-1]
    if all(torch.equal(x, origin) for x in at.values()):
        return None
    ropes: list[Rope | None] = [None]
    for inv_freq in frequencies:
        starts = {0, width - 2 * len(inv_freq)} if width >= 2 * len(inv_freq) else set()
        ropes += [
            Rope(sign * inv_freq.detach().to(torch.float32, copy=True), start, neighbours)
            for start in sorted(starts)
            for neighbours in (False, True)
            for sign in (1, -1)
        ]

    def error(rope: Rope | None) -> float:
        turned = {p: origin if rope is None else rope.turn(origin, p) for p in at}
        return max((turned[p].double() - at[p].double()).abs().max().item() for p in at)

    best = min(ropes, key=error)  # the first of equal ones
    allowed = 0.05 if origin.element_size() < 4 else 1e-3
    if not error(best) <= allowed * origin.abs().max().item():
        raise ValueError(
            "rotates its keys in an unknown way: with the position they change otherwise than by "
            "turning pairs of dims (RoPE), as they do with learned positions or norms after RoPE"
        )
    return best


def rotary_frequencies(model: torch.nn.Module) -> list[torch.Tensor]:
    """The rotary frequencies in the model, each once: several if layers rotate differently."""
    found: list[torch.Tensor] = []
    for name, buffer in model.named_buffers():
        known = any(torch.equal(buffer, other) for other in found)
        if name.endswith("inv_freq") and "original" not in name and not known:
            found.append(buffer)
    return found


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
            return one["rope_type"], limit
    return None


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
    check_rope_type(model.config)
    layers, found = probe(model), rotary_frequencies(model)
    if any(inv_freq.is_meta for inv_freq in found):  # offloaded weights
        found = [x for built in _build(model.config) for x in rotary_frequencies(built)]
    name = f"model_type={model.config.model_type!r}"
    if not found:
        raise ValueError(NO_ROPE.format(name))
    known: list[Rope] = []  # layers that are turned alike share one
    try:
        return [_rotation(layer, found, known) for layer in layers]
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


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
    own = (getattr(config, name, None) for name in ("no_rope_layers", "kv_lora_rank"))
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
