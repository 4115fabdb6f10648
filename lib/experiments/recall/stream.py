"""Recall against distance in a stream: facts are said once, and asked for so many tokens later.

The idea is StreamEval's (Xiao et al. 2023, arXiv:2309.17453), where each question asks for what was
said a fixed distance before. Here a question is the fact's own beginning, and there are several
distances.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.measure.perplexity import Evaluation
from lib.require import require, require_int

from .facts import encode, number, question, subjects


@dataclass
class Stream:
    """Texts in which facts come twice: said, and asked for with their last tokens to be found."""

    ids: torch.Tensor  # (N, T)
    asked: list[tuple[int, int]]  # (distance, where the second one begins), ascending
    answer: slice  # of a fact's tokens


def stream_places(
    length: int, size: int, distances: list[int], every: int
) -> list[tuple[int, int]]:
    """Where facts of `size` tokens begin in `length` tokens, and how far on each is asked for.

    A new one comes `every` tokens, or when there is room. It is asked for at the distance that was
    taken least so far and hits nothing else, the longest of several.
    """
    require_int("every", every, size)
    low, high = min(distances), max(distances)
    require(low >= size, "distances", distances, f"at least {size}, the tokens of a fact")
    require(1 + high + size <= length, "distances", distances, f"at most {length - size - 1}")
    free, counts, places, start = np.ones(length, bool), dict.fromkeys(distances, 0), [], 1
    while start + low + size <= length:
        fitting = [
            distance
            for distance in sorted(counts, key=lambda distance: (counts[distance], -distance))
            if start + distance + size <= length
            and free[start : start + size].all()
            and free[start + distance : start + distance + size].all()
        ]
        if not fitting:
            start += 1
            continue
        distance = fitting[0]
        for place in (start, start + distance):
            free[place : place + size] = False
        counts[distance] += 1
        places.append((start, distance))
        start += every
    return places


def fact_stream(
    texts: torch.Tensor, facts: torch.Tensor, distances: list[int], every: int, answer: slice
) -> Stream:
    """`texts` (N, T) with `facts` (N, K, n) in place of text, by `stream_places`; K are enough."""
    N, K, size = facts.shape
    places = stream_places(texts.shape[1], size, distances, every)
    require(len(places) <= K, "facts", K, f"{len(places)} or more in {texts.shape[1]} tokens")
    ids = texts.clone()
    for i, (start, distance) in enumerate(places):
        for place in (start, start + distance):
            ids[:, place : place + size] = facts[:, i]
    asked = sorted((distance, start + distance) for start, distance in places)
    return Stream(ids, asked, answer)


def token_stream(
    texts: torch.Tensor,
    distances: list[int],
    every: int,
    vocab_size: int,
    cue: int = 20,
    answer: int = 2,
    seed: int = 0,
) -> Stream:
    """Facts for a model that can copy and no more: `cue + answer` random tokens."""
    sampler = torch.Generator().manual_seed(seed)
    size = (len(texts), 1 + texts.shape[1] // every, cue + answer)
    facts = torch.randint(1, vocab_size, size, generator=sampler)
    return fact_stream(texts, facts, distances, every, slice(cue, cue + answer))


def word_stream(
    texts: torch.Tensor, distances: list[int], every: int, tokenizer, seed: int = 0
) -> Stream:
    """Facts in words: ` The number of Anna's lamp is 71432.` All have the same number of tokens."""
    rng, count = np.random.default_rng(seed), 1 + texts.shape[1] // every
    last, end, size = len(encode(tokenizer, number(rng))), len(encode(tokenizer, ".")), None
    rows: list[list[list[int]]] = [[] for _ in texts]
    for row in rows:
        for subject in subjects(rng):
            said = number(rng)
            fact = encode(tokenizer, f"{question(subject)}{said}.")
            size = size or len(fact)
            if len(row) < count and len(fact) == size and len(encode(tokenizer, said)) == last:
                row.append(fact)
    count = min(map(len, rows))
    facts = torch.tensor([row[:count] for row in rows])
    return fact_stream(texts, facts, distances, every, slice(size - end - last, size - end))


def stream_runs(stream: Stream, results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """A row per method, `distance` and question: is all of its answer `right`?

    A question stands for itself (`text`), as each asks for a number of its own.
    """
    first, last = stream.answer.start, stream.answer.stop
    rows = []
    for name, result in results.items():
        for i, (distance, start) in enumerate(stream.asked):
            # `correct` begins with the second token
            right = result.correct[:, start + first - 1 : start + last - 1].all(dim=1)
            where = {"method": name, "distance": distance}
            rows += [
                where | {"text": (i, row), "right": one} for row, one in enumerate(right.tolist())
            ]
    return pd.DataFrame(rows)
