"""A text continued under several settings side by side, a token each in turn."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from lib.cache.baseline import make_cache
from lib.cache.checks import check_ids
from lib.measure.generation import choose_token, next_logits

from .setting import Setting

NEW_TOKENS = 120
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
            last = next_logits(model, piece, cache)
            yield index, None
        caches.append(cache)
        logits.append(last)
    draws = [torch.Generator(ids.device).manual_seed(seed) for _ in settings]
    for _ in range(new_tokens):
        for index, cache in enumerate(caches):
            token = choose_token(logits[index], temperature, draws[index])
            yield index, int(token)
            logits[index] = next_logits(model, token, cache)


def side_by_side(
    model, tokenizer, prompt: torch.Tensor, lines: Mapping[str, Setting]
) -> Iterator[tuple[dict | None, int]]:
    """Continue `prompt` (T,) by `NEW_TOKENS` under each setting, as the page shows it.

    Yields what is to be shown once all columns have a token more, else None, and how many tokens
    each has.
    """
    after = tokenizer.decode(prompt[-24:])
    ids: dict[str, list[int]] = {name: [] for name in lines}
    names = list(lines)
    for place, token in write(model, prompt, list(lines.values()), NEW_TOKENS, TEMPERATURE):
        if token is not None:
            ids[names[place]].append(token)
        shown = None
        if token is None or place == len(names) - 1:
            columns = {
                name: {"label": line.label, "text": tokenizer.decode(ids[name])}
                for name, line in lines.items()
            }
            written = {"done": len(ids[names[-1]]), "total": NEW_TOKENS}
            shown = {"after": after, "columns": columns, **written}
        yield shown, len(ids[names[-1]])
