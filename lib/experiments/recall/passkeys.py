"""Passkeys: hidden in a text and asked for at its end, which a cut cache may have forgotten.

A passkey is a span of random tokens for a model that can copy and no more, and a number in a
sentence for larger ones.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from transformers import Cache

from lib.cache.baseline import make_cache
from lib.cache.checks import check_ids
from lib.compressors import Compressor
from lib.measure.rows import feeding_of
from lib.progress import progress
from lib.require import require, require_int

from .facts import encode, number

# sentences that share no words: a small model mixes up those that differ in one
FACTS = (
    "The pass key of the red door is",
    "The telephone number of the baker is",
    "An old ship in the harbour is called",
    "On the soldier's coat one can read",
    "Our train to the coast leaves at",
    "Her library card says",
    "Somebody won the lottery with ticket",
    "This clock was patented under",
    "A farmer sold his horses for",
    "Under the bridge is written",
)
CUTS = ("chunk", "prompt", "question")


@dataclass
class Passkeys:
    """Prompts that hold a passkey at each depth, and for each of these a question.

    A question ends with its answer, `answer` tokens long.
    """

    prompts: torch.Tensor  # (N, T)
    depths: list[float]  # 0 is the prompt's beginning, 1 its end
    questions: list[torch.Tensor]  # one (N, n) per depth
    answer: int

    def first(self, count: int) -> "Passkeys":
        """The same of the first `count` prompts."""
        questions = [question[:count] for question in self.questions]
        return replace(self, prompts=self.prompts[:count], questions=questions)


def token_passkeys(
    texts: torch.Tensor,
    depths: list[float],
    vocab_size: int,
    cue: int = 20,
    answer: int = 2,
    seed: int = 0,
) -> Passkeys:
    """Passkeys that a model which can copy can retrieve: spans of `cue + answer` random tokens.

    A question is the span itself: its first `cue` tokens ask for the others.
    """
    require_int("cue", cue, 1)
    require_int("answer", answer, 1)
    sampler = torch.Generator().manual_seed(seed)
    size = (len(depths), len(texts), cue + answer)
    keys = list(torch.randint(1, vocab_size, size, generator=sampler))
    return Passkeys(_hidden(texts, depths, keys), depths, keys, answer)


def sentence_passkeys(
    texts: torch.Tensor, depths: list[float], tokenizer, digits: int = 5, seed: int = 0
) -> Passkeys:
    """Passkeys as larger models are asked for them: a number in a sentence.

    Each depth has a sentence of its own, and the question is its beginning. All numbers have the
    same number of tokens.
    """
    require(len(depths) <= len(FACTS), "depths", depths, f"at most {len(FACTS)}")
    rng = np.random.default_rng(seed)
    encoded = partial(encode, tokenizer)
    length, keys, questions = None, [], []
    for fact in FACTS[: len(depths)]:
        sentences, asked = [], []
        while len(asked) < len(texts):
            said = number(rng, digits)
            answer, sentence = encoded(said), encoded(f" {fact}{said}. Remember it.")
            length = length or len(answer)
            if len(answer) == length and (not sentences or len(sentence) == len(sentences[0])):
                sentences.append(sentence)
                asked.append(encoded(f" {fact}") + answer)
        keys.append(torch.tensor(sentences))
        questions.append(torch.tensor(asked))
    return Passkeys(_hidden(texts, depths, keys), depths, questions, length)


def _hidden(texts, depths: list[float], keys: list[torch.Tensor]) -> torch.Tensor:
    """`texts` (N, T) with `keys`, one (N, n) per depth, in place of text; the first token stays."""
    prompts, end = texts.clone(), 1
    for depth, key in zip(depths, keys, strict=True):
        start = 1 + round(depth * (prompts.shape[1] - 1 - key.shape[1]))
        fits = end <= start and start + key.shape[1] <= prompts.shape[1]
        require(fits, "depths", depths, f"ascending, room for {key.shape[1]} tokens between them")
        end = start + key.shape[1]
        prompts[:, start:end] = key
    return prompts


@torch.no_grad()
def read_prompts(
    model,
    prompts: torch.Tensor,
    compressor: Compressor | None = None,
    chunk_size: int = 64,
    buffer: int = 0,
    cut: str = "chunk",
) -> Cache:
    """The cache that has read `prompts` (N, T) in steps of `chunk_size` tokens.

    `cut="chunk"` cuts after every step, as soon as `buffer` more tokens than the budget are held.
    Otherwise the prompt is read densely and cut once: by its last step ("prompt"), or by the step
    after it ("question"). These need a method with one budget for all layers.
    """
    require_int("chunk_size", chunk_size, 1)
    require(cut in CUTS, "cut", cut, f"one of {CUTS}")
    prompts = check_ids(model, prompts, 1)
    if cut != "chunk" and compressor is not None:
        layers = model.config.get_text_config().num_hidden_layers
        budgets = {compressor.layer_budget(i, layers) for i in range(layers)}
        one = None not in budgets and len(budgets) == 1
        require(one, "cut", cut, f"'chunk' for {compressor.name}: its layers have no common budget")
        # one token more than the cache may hold uncut comes with the step that cuts
        buffer = max(0, prompts.shape[1] - compressor.budget - (cut == "prompt"))
    cache = make_cache(model, compressor, buffer)
    for piece in prompts.split(chunk_size, dim=1):
        model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def retrieve(
    model,
    passkeys: Passkeys,
    compressor: Compressor | None = None,
    chunk_size: int = 64,
    buffer: int = 0,
    cut: str = "chunk",
) -> torch.Tensor:
    """Whether greedy decoding would say each token of the answers: (N, depths, answer).

    Prompts are read as `read_prompts` says. Each question, in one step, then finds the cache as the
    prompt left it, or with `cut="question"` takes part in the cut: all of it but the last token,
    which is left to find the answer in what stays. A token is right if it is the likeliest after
    the true ones before it.
    """
    cache = read_prompts(model, passkeys.prompts, compressor, chunk_size, buffer, cut)
    right, n = [], passkeys.answer
    for question in passkeys.questions:
        question = check_ids(model, question, n + 1 + (cut == "question"))
        branch = copy.deepcopy(cache)
        given = {"past_key_values": branch, "use_cache": True, "logits_to_keep": n}
        if cut == "question":
            model(input_ids=question[:, : -n - 1], **given)
            logits = model(input_ids=question[:, -n - 1 : -1], **given).logits
        else:
            logits = model(input_ids=question[:, :-1], **given).logits
        right.append((logits.argmax(-1) == question[:, -n:]).cpu())
    return torch.stack(right, dim=1)


def passkey_runs(
    model,
    passkeys: Mapping[int, Passkeys],
    methods: Mapping[str, Compressor | None],
    chunk_size: int = 64,
    cut: str = "chunk",
) -> pd.DataFrame:
    """A row per method, `length` of the prompt (the mapping's key), `depth` and text.

    `right` says whether all of the answer's tokens are. Methods are fed and, if `cut="chunk"`, cut
    as in `lib.measure.quality.quality`.
    """
    feeding, rows = feeding_of(methods, chunk_size), []
    for name, method in progress(methods.items(), desc="passkeys"):
        for length, one in passkeys.items():
            right = retrieve(model, one, method, **feeding[name], cut=cut)
            right = right.all(-1).numpy()  # (N, depths)
            for (text, place), answer in np.ndenumerate(right):
                where = {"length": length, "depth": one.depths[place], "text": text}
                rows.append({"method": name} | where | {"right": answer})
    return pd.DataFrame(rows)
