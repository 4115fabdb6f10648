"""The physical limit: what a model's tokens need of a machine, at least.

Decoding has to read every weight and the whole cache for each token, so it can't be faster than the
memory; evaluating a long text is bound by the matrix products. The counts are what the computation
needs, not what an implementation does: matrix products only, 2 FLOPs per multiply-add, for decoders
in which every token passes every linear layer and sees all that is cached.
"""

from dataclasses import dataclass

from torch import nn

from lib.cache.rope import head_width
from lib.require import require_int

from .machine import Machine


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
        cache_bytes=batch * (cached + 1) * cache_bytes_per_token(model),
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
    """Layers that cache, heads of keys and values, dimensions of a head."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    return config.num_hidden_layers - shared, heads, head_width(config)


def cache_bytes_per_token(model) -> int:
    """Bytes of a token's keys and values in all layers, in the model's dtype."""
    layers, heads, width = cache_shape(model)
    return 2 * layers * heads * width * model.dtype.itemsize


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
    config = model.config.get_text_config()
    heads = config.num_hidden_layers * config.num_attention_heads
    return 4 * heads * head_width(config) * keys


def _weight_bytes(model, batch: int) -> int:
    """Bytes of the weights a step reads. A head tied to the embedding is read in full."""
    count = 0
    for module in model.modules():
        looked_up = isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False):
            count += batch * weight[0].nbytes if looked_up else weight.nbytes
    return count
