"""Worker of `run.py` in kvpress' environment.

The loops follow kvpress' own pipeline: the prompt is read dense, then the press works while
decoding, and position ids count the text's tokens. An evaluation begins with a prompt of one token.
"""

from contextlib import nullcontext

import torch
from kvpress import DecodingPress, KeyRerotationPress, KnormPress, StreamingLLMPress
from kvpress.utils import compute_n_kept
from serve import greedy, serve, token_by_token
from transformers import AutoModelForCausalLM, DynamicCache


def load(folder: str, options: dict):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Sorted(StreamingLLMPress):
    """What stays, in the text's order, which the next cut relies on."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        if self.compression_ratio == 0:
            return keys, values
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        kept = compute_n_kept(keys.shape[2], self.compression_ratio)
        index = scores.topk(kept, dim=-1).indices.sort(dim=-1).values
        index = index[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index), values.gather(2, index)


def press(method: str, options: dict) -> DecodingPress | None:
    """These presses don't look at hidden states, so none are buffered."""
    if method == "DynamicCache":
        return None
    if method.startswith("knorm"):
        base = KnormPress()
    else:
        streaming = Sorted if "sorted" in method else StreamingLLMPress
        base = streaming(n_sink=options["sinks"])
    if "turned" in method:
        base = KeyRerotationPress(base)
    interval = options["lazy"] if "lazy" in method else 1
    return DecodingPress(base, interval, options["cache"], hidden_states_buffer_size=0)


class Dense:
    """Forward with a cache that the active press, if any, cuts."""

    def __init__(self, model):
        self.model, self.cache = model, DynamicCache()

    def __call__(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        return self.model(
            ids,
            past_key_values=self.cache,
            position_ids=torch.arange(position, position + ids.shape[1])[None],
            use_cache=True,
            logits_to_keep=1,
        ).logits

    @property
    def cache_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def decode(model, method: str, ids, request: dict, options: dict) -> dict:
    chosen, forward = press(method, options), Dense(model)
    with nullcontext() if chosen is None else chosen(model):
        # a decoding press leaves the prompt alone
        result = greedy(forward, ids, request["new_tokens"])
    return result | {"cache_bytes": forward.cache_bytes}


def score(model, method: str, ids, request: dict, options: dict) -> dict:
    chosen = press(method, options)
    with nullcontext() if chosen is None else chosen(model):
        return token_by_token(Dense(model), ids)


if __name__ == "__main__":
    serve(load, {"decode": decode, "evaluate": score})
