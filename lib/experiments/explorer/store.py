"""Losses that were computed before, by setting: in memory, and on disk for the next session."""

import hashlib
import inspect
from pathlib import Path

import numpy as np
import torch

from lib.measure.loss_code import loss_code
from lib.paths import atomic_path, cache_dir

from .setting import Setting


class Store:
    """NLL (T - 1,) of one model on one text, by `Setting.key`."""

    def __init__(self, model, tokens: torch.Tensor):
        self._known: dict[Setting, torch.Tensor] = {}
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

    def _path(self, setting: Setting) -> Path:
        name = _digest(self._prefix.encode(), repr(setting).encode())
        return cache_dir() / "explorer" / f"{name[:24]}.npy"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _code() -> bytes:
    """The code that a loss hangs on, and what a setting is: another version computes anew."""
    return (loss_code() + inspect.getsource(inspect.getmodule(Setting))).encode()


def _weights(model) -> bytes:
    """A model's config and device, and of each weight the beginning and the sum."""
    parts = [f"{model.config.to_json_string()}{model.device}".encode()]
    for name, weight in model.named_parameters():
        weight = weight.detach()
        total = weight.sum(dtype=torch.float64).item()
        start = weight.flatten()[:256].float().cpu().numpy().tobytes()
        parts.append(f"{name}{tuple(weight.shape)}{weight.dtype}{total!r}".encode() + start)
    return b"".join(parts)
