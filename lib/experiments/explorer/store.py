"""What was computed before, by setting: in memory, and on disk for the next session.

Losses of whole texts, and of each setting the look that was last taken with them.
"""

import hashlib
import inspect
from pathlib import Path

import numpy as np
import torch

from lib.measure.loss_code import loss_code
from lib.paths import atomic_path, cache_dir

from .reading import Look
from .setting import Setting

MOST_BYTES = 2**20  # of a look on disk: larger ones are taken anew


class Store:
    """NLL (T - 1,) of one model on one text and a look at it, by `Setting.key`."""

    def __init__(self, model, tokens: torch.Tensor):
        self._known: dict[Setting, torch.Tensor] = {}
        self._looks: dict[Setting, Look | None] = {}
        self._prefix = _digest(_code(), _weights(model), tokens.numpy().tobytes())

    def get(self, setting: Setting) -> torch.Tensor | None:
        """What was kept, or None."""
        setting = setting.key
        path = self._path(setting)
        if setting not in self._known and path.exists():
            self._known[setting] = torch.from_numpy(np.load(path))
        return self._known.get(setting)

    def put(self, setting: Setting, nll: torch.Tensor) -> None:
        """Keep the result of a whole text."""
        setting = setting.key
        self._known[setting] = nll = nll.clone()
        with atomic_path(self._path(setting)) as path:
            np.save(path, nll.numpy())

    def get_look(self, setting: Setting, step: int) -> Look | None:
        """The look that was kept, if it is at `step`."""
        setting = setting.key
        if setting not in self._looks:
            path = self._path(setting, "npz")
            self._looks[setting] = _read(path) if path.exists() else None
        look = self._looks[setting]
        return look if look is not None and look.step == step else None

    def put_look(self, setting: Setting, look: Look) -> None:
        """Keep a look in the place of the one before, unless it is large."""
        setting = setting.key
        tokens = {f"tokens_{layer}": x.int().numpy() for layer, x in enumerate(look.tokens)}
        weights = {f"weights_{layer}": x.numpy() for layer, x in enumerate(look.weights)}
        arrays = tokens | weights
        if sum(x.nbytes for x in arrays.values()) > MOST_BYTES:
            return
        self._looks[setting] = look
        with atomic_path(self._path(setting, "npz")) as path:
            np.savez(path, step=look.step, **arrays)

    def _path(self, setting: Setting, kind: str = "npy") -> Path:
        name = _digest(self._prefix.encode(), repr(setting).encode())
        return cache_dir() / "explorer" / f"{name[:24]}.{kind}"


def _read(path: Path) -> Look:
    with np.load(path) as kept:
        layers = range(len(kept.files) // 2)
        tokens, weights = (
            [torch.from_numpy(kept[f"{name}_{layer}"]) for layer in layers]
            for name in ("tokens", "weights")
        )
        return Look(int(kept["step"]), [x.long() for x in tokens], weights)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _code() -> bytes:
    """The code that this hangs on, and what a setting is: another version computes anew."""
    modules = (inspect.getmodule(x) for x in (Setting, Look))
    return (loss_code() + "".join(map(inspect.getsource, modules))).encode()


def _weights(model) -> bytes:
    """A model's config and device, and of each weight the beginning and the sum."""
    parts = [f"{model.config.to_json_string()}{model.device}".encode()]
    for name, weight in model.named_parameters():
        weight = weight.detach()
        total = weight.sum(dtype=torch.float64).item()
        start = weight.flatten()[:256].float().cpu().numpy().tobytes()
        parts.append(f"{name}{tuple(weight.shape)}{weight.dtype}{total!r}".encode() + start)
    return b"".join(parts)
