"""Turning cached keys (and queries) to a new position.

RoPE rotates a key at position p by the angles p * inv_freq, and rotations add up: a key that
stands at p is moved to p + delta by rotating it once more by delta * inv_freq. Often only some
leading dims of a head are rotated (GPT-NeoX: 25%, Llama: all); the rest stay as they are.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad


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
    # keys at 0, cos and sin, products and their sum are rounded: 2.9 eps at most, and 1.3 measured
    # in 16 bits, over transformers' decoders; what is off by more rotates otherwise
    allowed = max(1e-3, 3 * torch.finfo(origin.dtype).eps)
    if not error(best) <= allowed * origin.abs().max().item():
        raise ValueError(
            "rotates its keys in an unknown way: with the position they change otherwise than by "
            "turning pairs of dims (RoPE), as they do with learned positions, or with a norm after "
            "RoPE, which makes attention depend on more than distances"
        )
    return best
