"""Turning cached keys (and queries) to a new position.

RoPE rotates a key at position p by the angles p * inv_freq, and rotations add up: a key that
stands at p is moved to p + delta by rotating it once more by delta * inv_freq. Only the first
`rotary_dim` dims of a head are rotated (GPT-NeoX: 25%, Llama: all); the rest stay as they are.
"""

import sys
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# inv_freq of these depends on the length of the text, so a cached key can't be turned
LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass
class Rope:
    """The rotary frequencies `inv_freq`, (rotary_dim / 2,), and what turns keys by them."""

    inv_freq: torch.Tensor

    @property
    def rotary_dim(self) -> int:
        """How many leading dims of a head are rotated."""
        return 2 * len(self.inv_freq)

    def _cos_sin(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the angles by which `delta` (...,) turns: (..., rotary_dim / 2) each."""
        dtype = torch.float32 if delta.device.type == "mps" else torch.float64  # mps has no float64
        angles = delta[..., None].to(dtype) * self.inv_freq.to(delta.device, dtype)
        return angles.cos(), angles.sin()

    def cos_sin(self, delta: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for shifts `delta` (...,): (..., width) each, for heads of `width` dims.

        Dims that are not rotated have 1 and 0: `x * cos + half(x) * sin` is `x`, turned.
        """
        cos, sin = (torch.cat((x, x), dim=-1) for x in self._cos_sin(delta))
        rest = (0, width - self.rotary_dim)
        return pad(cos, rest, value=1.0), pad(sin, rest)

    def half(self, x: torch.Tensor) -> torch.Tensor:
        """(x1, x2, rest) -> (-x2, x1, 0) on the last dim, whose first two parts are rotated."""
        x1, x2 = x[..., : self.rotary_dim].chunk(2, dim=-1)
        return pad(torch.cat((-x2, x1), dim=-1), (0, x.shape[-1] - self.rotary_dim))

    def turn(self, x: torch.Tensor, delta: torch.Tensor | int) -> torch.Tensor:
        """Move `x` (B, H, T, D) by `delta` positions: an int, or a tensor that broadcasts to its T.

        Computed in float32 (float64 for float64 input) and returned in the dtype of `x`.
        """
        exact = torch.promote_types(x.dtype, torch.float32)
        delta = torch.as_tensor(delta, device=x.device)
        cos, sin = (angle.to(exact) for angle in self._cos_sin(delta))
        half = len(self.inv_freq)
        x1, x2, rest = x.to(exact).split((half, half, x.shape[-1] - 2 * half), dim=-1)
        turned = (x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest)
        return torch.cat(turned, dim=-1).to(x.dtype)


def find_rope(model: torch.nn.Module | PreTrainedConfig) -> Rope:
    """The `Rope` of a transformers model or config, checked against the model's own rotation.

    Raises ValueError for models whose cached keys can't be turned: no rotary embedding (ALiBi,
    learned positions), several of them, frequencies that depend on the length of the text, or
    another pairing of dims than (i, i + rotary_dim / 2).
    """
    config = model if isinstance(model, PreTrainedConfig) else model.config
    found = [] if config is model else rotary_embeddings(model)
    if config is model or any(m.inv_freq.is_meta for m in found):  # also for offloaded weights
        found = _build(config)
    if len(found) != 1:
        raise ValueError(
            f"model_type={config.model_type!r} has {len(found)} rotary embeddings; in-cache "
            "positions need exactly one: positions learned or added before the layers (GPT-2) "
            "can't be turned later (use positions='original', or a RoPE model: Pythia, Llama)"
        )
    rotary = found[0]
    rope_type = getattr(rotary, "rope_type", "default")
    if rope_type in LENGTH_DEPENDENT:
        raise ValueError(
            f"rope_type={rope_type!r} depends on the length of the text: not supported"
        )
    rope = Rope(rotary.inv_freq.detach().float())
    _check(config, rotary, rope)
    return rope


def rotary_embeddings(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's modules with rotary frequencies."""
    return [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]


def head_width(config: PreTrainedConfig) -> int:
    """Dimensions of a head's keys."""
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


def _build(config: PreTrainedConfig) -> list[torch.nn.Module]:
    """The rotary embeddings that a model of this config would have."""
    config = config.get_text_config()
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    module = sys.modules[model.__module__] if model else None
    names = [name for name in vars(module or object) if name.endswith("RotaryEmbedding")]
    built = [getattr(module, name)(config) for name in names]
    return [m for m in built if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]


def _check(config, rotary, rope: Rope) -> None:
    """Turning from 3 to 10 must equal the model's own rotation at 10."""
    apply = getattr(sys.modules[type(rotary).__module__], "apply_rotary_pos_emb", None)
    width = head_width(config.get_text_config())
    x = torch.linspace(-1, 1, width, device=rope.inv_freq.device).view(1, 1, 1, -1)

    def at(position: int) -> torch.Tensor:
        cos, sin = rotary(x, torch.tensor([[position]], device=x.device))
        return apply(x, x, cos, sin)[0]

    if apply is None or not torch.allclose(rope.turn(at(3), 7), at(10), atol=1e-4):
        raise ValueError(f"model_type={config.model_type!r} rotates its keys in an unknown way")
