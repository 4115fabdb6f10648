"""What compression forgets: copying a span seen earlier, and a passkey asked for at the end.

A span of random tokens can't be guessed: whoever continues its second copy has found the first. The
reference model learned that, and no more; a larger model can be asked for a number in a sentence.
Both tasks give runs, a row per method, place and text, of which `recall_table` makes tables.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.cache.baseline import make_cache
from lib.cache.checks import check_ids
from lib.compressors import Compressor
from lib.measure.perplexity import Evaluation
from lib.measure.rows import BASELINE, budget_of, feeding_of
from lib.measure.stats import mean_ci, ratio_table, share_ci, with_interval
from lib.progress import progress
from lib.require import require, require_int

NAMES = ("red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "silver")
SENTENCE = " The pass key of the {} door is{}. Remember it."
QUESTION = " What is the pass key of the {} door? The pass key of the {} door is"


@dataclass
class Copies:
    """Texts with spans of random tokens, each of which comes twice."""

    ids: torch.Tensor  # (N, T)
    is_text: torch.Tensor  # (T,), false inside a span
    distances: list[int]  # tokens from a first copy to its second, ascending
    second: list[int]  # where the second copies begin
    span: int


def nested_copies(
    texts: torch.Tensor, distances: list[int], span: int, vocab_size: int, seed: int = 0
) -> Copies:
    """Put spans of random tokens (not token 0) and their copies into `texts` (N, T).

    The pairs are nested, nearest innermost, A B C ... C B A, and end where the texts do.
    """
    require_int("span", span, 1)
    distances, (N, T) = sorted(distances), texts.shape
    fits = np.diff([-span, *distances]) >= 2 * span
    require(fits.all(), "distances", distances, f"2 * span = {2 * span} apart, from {span} on")
    most = T - span - 1
    require(distances[-1] <= most, "distances", distances, f"at most {most} for texts of {T}")
    sampler = torch.Generator().manual_seed(seed)
    ids, is_text = texts.clone(), torch.ones(T, dtype=torch.bool)
    middle = T - span - distances[-1] // 2
    second = [middle + distance // 2 for distance in distances]
    for distance, start in zip(distances, second, strict=True):
        tokens = torch.randint(1, vocab_size, (N, span), generator=sampler)
        for place in (start - distance, start):
            ids[:, place : place + span] = tokens
            is_text[place : place + span] = False
    return Copies(ids, is_text, distances, second, span)


def copying_runs(copies: Copies, results: Mapping[str, Evaluation], cue: int) -> pd.DataFrame:
    """A row per method, `distance` and text: `right`, the share of a second copy predicted.

    Its first `cue` tokens don't count.
    """
    rows = []
    for name, result in results.items():
        for distance, start in zip(copies.distances, copies.second, strict=True):
            # `correct` begins with the second token
            right = result.correct[:, start + cue - 1 : start + copies.span - 1].float().mean(1)
            where = {"method": name, "distance": distance}
            rows += [where | {"text": i, "right": share} for i, share in enumerate(right.tolist())]
    return pd.DataFrame(rows)


def recall_table(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean of `right` in percent by the columns `by`, with its 95% interval over texts.

    A text counts with the mean of its rows. Where `right` is yes or no the interval is Wilson's,
    otherwise the bootstrap's, kept within 0 to 100.
    """
    rows = []
    for key, part in runs.groupby(by, sort=False):
        values = part.groupby("text").right.mean()
        yes_or_no = part.right.dtype == bool
        estimate = share_ci(values.sum(), len(values)) if yes_or_no else mean_ci(values)
        percent = (100 * np.array(estimate)).clip(0, 100).tolist()  # nan stays nan
        row = dict(zip(by, key, strict=True)) | with_interval("accuracy_%", percent)
        rows.append(row | {"n_texts": part.text.nunique()})
    return pd.DataFrame(rows)


def price_table(
    copies: Copies, results: Mapping[str, Evaluation], runs: pd.DataFrame, budgets: list[int]
) -> pd.DataFrame:
    """Recall beside perplexity, a row per method and budget: `<group>_<budget>`, and the baseline.

    Copying accuracy of `runs` over the distances longer than the budget; perplexity of the text
    between the copies and its ratio to the baseline's, from where the largest budget is full.
    """
    most = copies.distances[-1] - 1
    require(max(budgets) <= most, "budgets", budgets, f"at most {most}, less than a distance")
    is_text = copies.is_text.clone()
    is_text[: max(budgets) + 1] = False
    nll = {name: result.nll[:, is_text[1:]] for name, result in results.items()}
    ratios = ratio_table({name: (part, nll[BASELINE]) for name, part in nll.items()})
    kept, parts = runs.method.map(budget_of), []
    for budget in budgets:
        own = kept.isin([budget, float("inf")])
        far = recall_table(runs[own & (runs.distance > budget)], ["method"])
        parts.append(far.assign(budget=budget).merge(ratios.drop(columns="n_texts"), on="method"))
    return pd.concat(parts, ignore_index=True)


@dataclass
class Passkeys:
    """Prompts that hold a passkey at each depth, and for each of these a question.

    A question ends with its answer, `answer` tokens long.
    """

    prompts: torch.Tensor  # (N, T)
    depths: list[float]  # 0 is the prompt's beginning, 1 its end
    questions: list[torch.Tensor]  # one (N, n) per depth
    answer: int


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
    """Passkeys as larger models are asked for them: a number in a sentence, a question at the end.

    Each depth has a door of its own. All numbers have the same number of tokens.
    """
    require(len(depths) <= len(NAMES), "depths", depths, f"at most {len(NAMES)}")
    rng = np.random.default_rng(seed)

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    length, keys, questions = None, [], []
    for name in NAMES[: len(depths)]:
        sentences, asked = [], []
        while len(asked) < len(texts):
            number = " " + "".join(str(digit) for digit in rng.integers(1, 10, digits))
            answer, sentence = encoded(number), encoded(SENTENCE.format(name, number))
            length = length or len(answer)
            if len(answer) == length and (not sentences or len(sentence) == len(sentences[0])):
                sentences.append(sentence)
                asked.append(encoded(QUESTION.format(name, name)) + answer)
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
def retrieve(
    model,
    passkeys: Passkeys,
    compressor: Compressor | None = None,
    chunk_size: int = 64,
    buffer: int = 0,
) -> torch.Tensor:
    """Whether greedy decoding would say each token of the answers: (N, depths, answer).

    The prompt is compressed before any question is known, in steps of `chunk_size` tokens, and
    `buffer` tokens may pile up before a cut. Each question, in one step, then finds the cache as
    the prompt left it. A token is right if it is the likeliest after the true ones before it.
    """
    require_int("chunk_size", chunk_size, 1)
    prompts = check_ids(model, passkeys.prompts, 1)
    cache = make_cache(model, compressor, buffer)
    for piece in prompts.split(chunk_size, dim=1):
        model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    right, n = [], passkeys.answer
    for question in passkeys.questions:
        question, branch = question.to(prompts.device), copy.deepcopy(cache)
        given = {"past_key_values": branch, "use_cache": True, "logits_to_keep": n}
        logits = model(input_ids=question[:, :-1], **given).logits
        right.append((logits.argmax(-1) == question[:, -n:]).cpu())
    return torch.stack(right, dim=1)


def passkey_runs(
    model,
    passkeys: Mapping[int, Passkeys],
    methods: Mapping[str, Compressor | None],
    chunk_size: int = 64,
) -> pd.DataFrame:
    """A row per method, `length` of the prompt (the mapping's key), `depth` and text.

    `right` says whether all of the answer's tokens are. Methods are fed and cut as in
    `lib.measure.quality.quality`.
    """
    feeding, rows = feeding_of(methods, chunk_size), []
    for name, method in progress(methods.items(), desc="passkeys"):
        for length, one in passkeys.items():
            right = retrieve(model, one, method, **feeding[name]).all(-1).numpy()  # (N, depths)
            for (text, place), answer in np.ndenumerate(right):
                where = {"length": length, "depth": one.depths[place], "text": text}
                rows.append({"method": name} | where | {"right": answer})
    return pd.DataFrame(rows)
