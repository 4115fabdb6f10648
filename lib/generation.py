"""The manual generation loop, timed."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .attention import NAME, attention_implementation
from .cache import CompressedCache, cache_bytes, check_ids, check_method, held_lengths
from .compressors import Compressor
from .compressors.base import require, require_int


@dataclass
class Generation:
    """What `generate` returns."""

    tokens: torch.Tensor  # the new tokens, (max_new_tokens,) or (B, max_new_tokens)
    ttft: float  # time to first token, seconds: the whole prompt and one token
    step_times: list[float]  # seconds of each later token
    cache_lengths: list[int]  # tokens held after each step by the layer that holds most
    evictions: int  # steps that cut the cache
    cache_bytes: int  # bytes of keys and values at the end

    @property
    def tpot(self) -> float:
        """Time per output token after the first, seconds: the median over steps."""
        return float(torch.tensor(self.step_times).median()) if self.step_times else float("nan")

    @property
    def throughput(self) -> float:
        """Tokens decoded per second and sequence after the first, the prompt's time apart."""
        return len(self.step_times) / sum(self.step_times) if self.step_times else float("nan")


@torch.no_grad()
def generate(
    model,
    input_ids: torch.Tensor,
    compressor: Compressor | None = None,
    max_new_tokens: int = 128,
    positions: str = "in_cache",
    prefill_chunk: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generation:
    """Continue `input_ids`, (T,) or (B, T), greedily, or sampling at `temperature` > 0.

    Position-only methods stream the prompt strictly, `prefill_chunk` tokens at a time; methods
    that look at the keys see the whole prompt (dense) and cut afterwards. `compressor=None` is the
    `DynamicCache` baseline.
    """
    require_int("max_new_tokens", max_new_tokens, 1)
    require_int("prefill_chunk", prefill_chunk, 1)
    require(temperature >= 0, "temperature", temperature, ">= 0 (0 is greedy)")
    ids = check_ids(model, input_ids, 1)
    check_method(compressor, positions)
    sampler = torch.Generator(model.device).manual_seed(seed)
    if compressor is None:
        cache, attention = DynamicCache(config=model.config), nullcontext()
    else:
        cache = CompressedCache(model, compressor, positions)
        attention = attention_implementation(model, NAME)
    streamed = compressor is not None and cache.window is not None
    pieces = ids.split(prefill_chunk, dim=1) if streamed else (ids,)

    tokens, lengths, times = [], [], []
    with attention:
        began = _now(model)
        for piece in pieces:
            logits = _forward(model, piece, cache)
        for index in range(max_new_tokens):
            tokens.append(_choose(logits, temperature, sampler))
            times.append(_now(model) - began)
            lengths.append(max(held_lengths(cache)))
            if index + 1 < max_new_tokens:
                began = _now(model)
                logits = _forward(model, tokens[-1], cache)
    new = torch.cat(tokens, dim=1).cpu()
    return Generation(
        tokens=new[0] if input_ids.ndim == 1 else new,
        ttft=times[0],
        step_times=times[1:],
        cache_lengths=lengths,
        evictions=0 if compressor is None else cache.evictions,
        cache_bytes=cache_bytes(cache),
    )


def _forward(model, ids: torch.Tensor, cache) -> torch.Tensor:
    """Logits (B, V) of the last of `ids` (B, n)."""
    if isinstance(cache, CompressedCache):
        kwargs = cache.step(ids.shape[1], ids.device)
    else:
        kwargs = {"past_key_values": cache}
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, **kwargs).logits[:, -1]


def _choose(logits: torch.Tensor, temperature: float, sampler: torch.Generator) -> torch.Tensor:
    """The next token, (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=sampler)


def _now(model) -> float:
    """Seconds, after the accelerator has finished its work."""
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
    return time.perf_counter()
