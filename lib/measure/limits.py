"""The physical limit: what a machine can read and multiply, and what a model's tokens need of it.

Decoding has to read every weight and the whole cache for each token, so it can't be faster than the
memory; evaluating a long text is bound by the matrix products. The counts are what the computation
needs, not what an implementation does: matrix products only, 2 FLOPs per multiply-add, for decoders
in which every token passes every linear layer and sees all that is cached.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lib.cache.rope import head_width
from lib.require import require_int

from .instruments import now


@dataclass(frozen=True)
class Machine:
    """What was measured of one device, with torch's number of threads at that time."""

    bandwidth: float  # bytes read from memory per second
    gemm: float  # FLOP/s of a large matrix product


@dataclass(frozen=True)
class Work:
    """What one decoding step needs: a token for each sequence of the batch."""

    flops: int  # all of them
    attention_flops: int  # of these: queries by keys, weights by values
    weight_bytes: int  # every weight once, and one row of the embedding per sequence
    cache_bytes: int  # keys and values of the cached tokens and the new one

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


@torch.no_grad()
def measure_machine(device="cpu", dtype: torch.dtype = torch.float32, seconds=1.0) -> Machine:
    """Read and multiply on `device`, each for half of `seconds`; the best run counts.

    The best, because whatever else runs on the machine can only slow a run down.
    """
    device = torch.device(device)
    cpu = device.type == "cpu"
    # far larger than a processor's caches; a sum is the fastest read torch has: on a CPU, unlike a
    # product of a matrix and a vector, it uses all threads
    buffer = torch.ones(2**27 if cpu else 2**29, device=device)  # float32: 0.5 or 2 GiB
    bandwidth = buffer.nbytes / _best_time(buffer.sum, device, seconds / 2)
    del buffer
    size, small = (2048, 256) if cpu else (8192, 1024)
    gemm = _gemm_rate(small, device, dtype, 0)
    if 2 * size**3 / gemm < 1:  # else it can't multiply this type, and would take minutes
        gemm = max(gemm, _gemm_rate(size, device, dtype, seconds / 2))
    return Machine(bandwidth, gemm)


def _gemm_rate(size: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best_time(lambda: a @ b, device, seconds)


def _best_time(function: Callable, device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call: of three at least, of more while `seconds` last."""
    times = []
    function()  # warm up
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = now(device)
        function()
        times.append(now(device) - began)
    return min(times)


def flops_per_token(model, cached: int) -> int:
    """FLOPs of one token that sees `cached` tokens and itself."""
    require_int("cached", cached, 0)
    return _linear_flops(model) + _attention_flops(model, cached + 1)


def decoding_work(model, cached: int, batch: int = 1) -> Work:
    """What one step of `batch` sequences needs, each with `cached` tokens in its cache."""
    require_int("batch", batch, 1)
    return Work(
        flops=batch * flops_per_token(model, cached),
        attention_flops=batch * _attention_flops(model, cached + 1),
        weight_bytes=_weight_bytes(model, batch),
        cache_bytes=batch * _cache_bytes(model, cached + 1),
    )


def evaluation_flops(model, length: int, budget: int | None = None) -> int:
    """FLOPs to predict all of a text of `length` tokens: the last of them is never fed.

    Each token sees all before it, or the `budget` tokens a strict window (sinks included) holds.
    """
    require_int("length", length, 2)
    n = length - 1
    if budget is not None:
        require_int("budget", budget, 1)
    growing = n if budget is None else min(n, budget + 1)  # tokens each seeing one more key
    keys = growing * (growing + 1) // 2 + (n - growing) * growing
    return n * _linear_flops(model) + _attention_flops(model, keys)


def least_seconds(work: Work, machine: Machine) -> float:
    """The least time `machine` could take for a step (its roofline)."""
    return max(work.bytes / machine.bandwidth, work.flops / machine.gemm)


def share_of_limit(seconds_per_token: float, work: Work, machine: Machine) -> float:
    """`least_seconds` over the measured time of a step.

    May exceed 1 for a model that fits into the processor's caches: its weights aren't read from
    memory.
    """
    return least_seconds(work, machine) / seconds_per_token


def cache_shape(model) -> tuple[int, int, int]:
    """Layers, heads of keys and values, dimensions of a head."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_hidden_layers, heads, head_width(config)


def _linear_flops(model) -> int:
    """FLOPs of one token in all linear layers."""
    return sum(
        2 * weight.numel()
        for module in model.modules()
        for weight in module.parameters(recurse=False)
        if weight.ndim == 2 and not isinstance(module, nn.Embedding)
    )


def _attention_flops(model, keys: int) -> int:
    """FLOPs of one query that sees `keys` keys, in all layers and heads."""
    layers, _, width = cache_shape(model)
    return 4 * layers * model.config.get_text_config().num_attention_heads * width * keys


def _weight_bytes(model, batch: int) -> int:
    """Bytes of the weights a step reads. A head tied to the embedding is read in full."""
    count = 0
    for module in model.modules():
        looked_up = isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False):
            count += batch * weight[0].nbytes if looked_up else weight.nbytes
    return count


def _cache_bytes(model, tokens: int) -> int:
    """Bytes of `tokens` keys and values in all layers, in the model's dtype."""
    layers, heads, width = cache_shape(model)
    return 2 * layers * heads * width * tokens * model.dtype.itemsize
