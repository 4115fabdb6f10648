"""Worker of `run.py` in attention_sinks' environment."""

import torch
from attention_sinks import AutoModelForCausalLM
from serve import greedy, serve, token_by_token


def load(folder: str, options: dict):
    return AutoModelForCausalLM.from_pretrained(
        folder,
        torch_dtype=torch.float32,
        attention_sink_size=options["sinks"],
        attention_sink_window_size=options["cache"] - options["sinks"],
    ).eval()


class Sinks:
    """Forward with the past that the model itself cuts; positions are counted from its length."""

    def __init__(self, model):
        self.model, self.past = model, None

    def __call__(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        output = self.model(input_ids=ids, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        return output.logits

    @property
    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.past for tensor in layer)


def decode(model, method: str, ids, request: dict, options: dict) -> dict:
    forward = Sinks(model)
    result = greedy(forward, ids, request["new_tokens"])
    return result | {"cache_bytes": forward.cache_bytes}


def score(model, method: str, ids, request: dict, options: dict) -> dict:
    return token_by_token(Sinks(model), ids)


if __name__ == "__main__":
    serve(load, {"decode": decode, "evaluate": score})
