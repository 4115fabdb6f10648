"""Worker of `run.py` in this project's environment: our methods and transformers' own caches."""

import time

import torch
from serve import greedy, serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from lib import Compressor, StreamingLLM, cache_bytes, evaluate, generate
from lib.compressors import FixSizeL2

ORIGINAL = "original"


def load(folder: str, options: dict):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def compressor(method: str, options: dict) -> Compressor:
    """kvpress' knorm press skips no layer and reserves nothing for recent tokens."""
    budget, sinks = options["cache"], options["sinks"]
    if method.startswith("knorm"):
        return FixSizeL2(budget, keep_ratio=0.0, skip_layers=())
    return StreamingLLM(sinks, budget - sinks)


def decode(model, method: str, ids, request: dict, options: dict) -> dict:
    new_tokens = request["new_tokens"]
    if method in ("DynamicCache", "StaticCache"):
        cache = DynamicCache(config=model.config)
        if method == "StaticCache":
            length = ids.shape[1] + new_tokens
            cache = StaticCache(config=model.config, max_cache_len=length)

        def forward(ids, position):
            return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

        return greedy(forward, ids, new_tokens) | {"cache_bytes": cache_bytes(cache)}
    result = generate(
        model,
        ids,
        compressor(method, options),
        max_new_tokens=new_tokens,
        positions=ORIGINAL if ORIGINAL in method else "in_cache",
    )
    return {
        "ttft": result.ttft,
        "step_times": result.step_times,
        "cache_bytes": result.cache_bytes,
    }


def score(model, method: str, ids, request: dict, options: dict) -> dict:
    began = time.perf_counter()
    result = evaluate(
        model,
        ids,
        None if method == "DynamicCache" else compressor(method, options),
        chunk_size=1 if "token by token" in method else 512,
        positions=ORIGINAL if ORIGINAL in method else "in_cache",
    )
    return {"nll": result.nll.double().mean().item(), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve(load, {"decode": decode, "evaluate": score})
