"""The manual generation loop, timed."""

from dataclasses import dataclass

import torch

from lib.cache.baseline import STATIC, cache_bytes, held_lengths, make_cache, streams
from lib.cache.checks import check_ids
from lib.compressors import Compressor
from lib.require import require, require_int

from .machine import now


@dataclass
class Generation:
    """What `generate` returns."""

    tokens: torch.Tensor  # the new tokens, (max_new_tokens,) or (B, max_new_tokens)
    ttft: float  # time to first token, seconds: the whole prompt and one token
    step_times: list[float]  # seconds of each later token
    cache_lengths: list[int]  # tokens held after each step by the layer that holds most
    layer_lengths: list[int]  # tokens held at the end, by layer
    mean_length: float  # tokens held, mean over steps and layers
    evictions: int  # how often the cache was cut
    cache_bytes: int  # the most bytes the cache had allocated after a step

    @property
    def tpot(self) -> float:
        """Time per output token after the first, seconds: the mean over steps, cuts included."""
        steps = len(self.step_times)
        return sum(self.step_times) / steps if steps else float("nan")

    @property
    def throughput(self) -> float:
        """Tokens decoded per second and sequence after the first, the prompt's time apart."""
        return 1 / self.tpot


@torch.no_grad()
def generate(
    model,
    input_ids: torch.Tensor,
    compressor: Compressor | str | None = None,
    max_new_tokens: int = 128,
    positions: str = "in_cache",
    buffer: int = 0,
    prefill: str = "streamed",
    prefill_chunk: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    compile: bool = False,
) -> Generation:
    """Continue `input_ids`, (T,) or (B, T), greedily, or sampling at `temperature` > 0.

    `positions`, `buffer` and `prefill` are those of `lib.CompressedCache`; a streamed prompt goes
    in `prefill_chunk` tokens at a time, a dense one in one piece, as for methods that look at the
    keys. `compressor=None` is dense, in a `DynamicCache`, "static" the same in a `StaticCache`.
    `compile` runs the steps of one token through `torch.compile` (position-only methods), which
    takes its time at first.
    """
    require_int("max_new_tokens", max_new_tokens, 1)
    require_int("prefill_chunk", prefill_chunk, 1)
    require(temperature >= 0, "temperature", temperature, ">= 0 (0 is greedy)")
    ids = check_ids(model, input_ids, 1)
    dense = compressor in (None, STATIC)
    require(not (dense and compile), "compile", compile, "False for dense attention")
    room = ids.shape[1] + max_new_tokens - 1
    cache = make_cache(model, compressor, buffer, positions, prefill, compile, room)
    sampler = torch.Generator(ids.device).manual_seed(seed)
    streamed = streams(compressor) and prefill == "streamed"
    pieces = ids.split(prefill_chunk, dim=1) if streamed else (ids,)
    step = _compiled(model) if compile else model

    tokens, held, held_bytes, times = [], [], [], []
    began = now(ids.device)
    for piece in pieces:
        logits = next_logits(model, piece, cache)
    for index in range(max_new_tokens):
        tokens.append(choose_token(logits, temperature, sampler))
        times.append(now(ids.device) - began)
        held.append(held_lengths(cache))
        held_bytes.append(cache_bytes(cache))
        if index + 1 < max_new_tokens:
            began = now(ids.device)
            logits = next_logits(step, tokens[-1], cache)
    new = torch.cat(tokens, dim=1).cpu()
    return Generation(
        tokens=new[0] if input_ids.ndim == 1 else new,
        ttft=times[0],
        step_times=times[1:],
        cache_lengths=[max(lengths) for lengths in held],
        layer_lengths=held[-1],
        mean_length=sum(map(sum, held)) / len(held) / len(held[0]),
        evictions=getattr(cache, "evictions", 0),
        cache_bytes=max(held_bytes),
    )


def next_logits(model, ids: torch.Tensor, cache) -> torch.Tensor:
    """Logits (B, V) of the token after `ids` (B, n), which `cache` takes in."""
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]


def _compiled(model):
    """`model` with its forward compiled; what the cache does before a step stays outside."""
    mode = "reduce-overhead" if model.device.type == "cuda" else None
    forward = torch.compile(model.forward, fullgraph=True, mode=mode)

    def step(past_key_values, **kwargs):
        kwargs |= past_key_values.step(1, kwargs["input_ids"].device)
        return forward(**kwargs)

    return step


def choose_token(
    logits: torch.Tensor, temperature: float, sampler: torch.Generator
) -> torch.Tensor:
    """The next token, (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=sampler)
