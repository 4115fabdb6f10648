"""A text continued under several settings side by side, a token each in turn."""

from collections.abc import Iterator, Sequence

import torch

from lib.cache.baseline import make_cache
from lib.cache.checks import check_ids
from lib.measure.generation import choose_token

from .setting import Setting

TEMPERATURE = 0.7  # greedy, small models soon repeat themselves whatever they keep


@torch.no_grad()
def write(
    model,
    prompt: torch.Tensor,
    settings: Sequence[Setting],
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[int, int | None]]:
    """Continue `prompt` (T,): yields which setting, and its next token.

    While the prompt is read the token is None. All draw with the same random numbers.
    """
    ids = check_ids(model, prompt, 1)
    caches, logits = [], []
    for index, setting in enumerate(settings):
        cache = make_cache(model, setting.compressor(), setting.buffer, setting.positions)
        for piece in ids.split(setting.chunk_size, dim=1):
            output = model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            yield index, None
        caches.append(cache)
        logits.append(output.logits[:, -1])
    draws = [torch.Generator(ids.device).manual_seed(seed) for _ in settings]
    for _ in range(new_tokens):
        for index, cache in enumerate(caches):
            token = choose_token(logits[index], temperature, draws[index])
            yield index, int(token)
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            logits[index] = output.logits[:, -1]
