"""Tasks of RULER's kinds, in our own words: needles in a text, and what has to be found of them.

Single needle, several needles (one of which is asked for), several values (all of them), variable
tracking (all names of a value, one name given by the other). Hsieh et al. 2024, arXiv:2404.06654.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.cache.checks import check_ids
from lib.compressors import Compressor
from lib.measure.generation import next_logits
from lib.measure.rows import BASELINE, feeding_of
from lib.progress import progress
from lib.require import require

from .facts import encode, number, question, subjects
from .passkeys import read_prompts

NEEDLES = 4  # needles, values or names where there are several
ENOUGH = 0.5  # of the values: a task of which dense attention finds no more is too hard
SINGLE, KEYS = "single needle", "several needles"
VALUES, VARIABLES = "several values", "variable tracking"

Ids = list[int]


@dataclass
class Task:
    """Prompts with needles, a question for each, and the values that its answer has to hold."""

    prompts: torch.Tensor  # (N, T)
    questions: torch.Tensor  # (N, n)
    values: list[list[Ids]]  # of each prompt


def word_tasks(texts: torch.Tensor, tokenizer, seed: int = 0) -> dict[str, Task]:
    """The four tasks by name, hidden in `texts` (N, T); each has its own needles."""
    rng, makers = np.random.default_rng(seed), (_single, _keys, _values, _variables)
    made = zip((SINGLE, KEYS, VALUES, VARIABLES), makers, strict=True)
    return {name: _task(texts, tokenizer, maker, rng) for name, maker in made}


def _single(rng) -> tuple[list[str], str, list[str]]:
    """The needles, the question and the values that answer it; so for all four."""
    subject, value = subjects(rng)[0], number(rng)
    return [f"{question(subject)}{value}."], question(subject), [value]


def _keys(rng) -> tuple[list[str], str, list[str]]:
    names, values = subjects(rng)[:NEEDLES], [number(rng) for _ in range(NEEDLES)]
    needles = [f"{question(name)}{value}." for name, value in zip(names, values, strict=True)]
    asked = rng.integers(NEEDLES)
    return needles, question(names[asked]), [values[asked]]


def _values(rng) -> tuple[list[str], str, list[str]]:
    subject, values = subjects(rng)[0], [number(rng) for _ in range(NEEDLES)]
    needles = [f" One of the numbers of {subject} is{value}." for value in values]
    return needles, f" The {NEEDLES} numbers of {subject} are", values


def _variables(rng) -> tuple[list[str], str, list[str]]:
    value, digits = number(rng), rng.integers(1, 10, NEEDLES)
    letters = rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), NEEDLES, replace=False)
    names = [f" {letter}{digit}" for letter, digit in zip(letters, digits, strict=True)]
    given = [value, *names]
    needles = [f" Let{name} ={before}." for name, before in zip(names, given, strict=False)]
    return needles, f" The {NEEDLES} variables with the value{value} are", names


def _task(texts: torch.Tensor, tokenizer, maker, rng) -> Task:
    """Prompts of what `maker` makes; what would give a question of another length is left out."""
    needles, questions, values = [], [], []
    while len(needles) < len(texts):
        said, asked, found = maker(rng)
        ids = encode(tokenizer, asked)
        if not questions or len(ids) == len(questions[0]):
            questions.append(ids)
            needles.append([encode(tokenizer, one) for one in said])
            values.append([encode(tokenizer, one) for one in found])
    return Task(scatter(texts, needles, rng), torch.tensor(questions), values)


def token_tasks(
    texts: torch.Tensor, vocab_size: int, cue: int = 20, answer: int = 2, seed: int = 0
) -> dict[str, Task]:
    """The two tasks that a model which can copy and no more may do.

    A needle is a span of random tokens, whose first `cue` ask for the last `answer`.
    """
    rng, tasks = np.random.default_rng(seed), {}
    for name, count in ((SINGLE, 1), (KEYS, NEEDLES)):
        needles = rng.integers(1, vocab_size, (len(texts), count, cue + answer)).tolist()
        asked = [spans[rng.integers(count)] for spans in needles]
        questions = torch.tensor([span[:cue] for span in asked])
        values = [[span[cue:]] for span in asked]
        tasks[name] = Task(scatter(texts, needles, rng), questions, values)
    return tasks


def scatter(
    texts: torch.Tensor, needles: list[list[Ids]], rng: np.random.Generator
) -> torch.Tensor:
    """`texts` (N, T) with the needles of each in place of text, in order; the first token stays.

    Each needle stands somewhere in a stretch of its own; all stretches are of one length.
    """
    prompts = texts.clone()
    for row, said in zip(prompts, needles, strict=True):
        stretch, longest = (len(row) - 1) // len(said), max(map(len, said))
        require(longest <= stretch, "texts", len(row), f"{1 + longest * len(said)} tokens or more")
        for i, needle in enumerate(said):
            start = 1 + i * stretch + rng.integers(stretch - len(needle) + 1)
            row[start : start + len(needle)] = torch.tensor(needle)
    return prompts


@torch.no_grad()
def answer(
    model, task: Task, compressor: Compressor | None = None, chunk_size: int = 64, buffer: int = 0
) -> list[list[bool]]:
    """Which of its values each prompt's answer holds: the tokens of a value, one after the other.

    The prompt is cut before the question is known; the answer is greedy, and twice as long as all
    of its values.
    """
    cache = read_prompts(model, task.prompts, compressor, chunk_size, buffer)
    ids, said = check_ids(model, task.questions, 1), []
    for _ in range(2 * max(sum(map(len, values)) for values in task.values)):
        ids = next_logits(model, ids, cache).argmax(-1, keepdim=True)  # (N, 1)
        said.append(ids)
    answers = torch.cat(said, dim=1).tolist()
    return [
        [holds(one, value) for value in values]
        for one, values in zip(answers, task.values, strict=True)
    ]


def holds(ids: Ids, value: Ids) -> bool:
    """Whether the tokens `value` stand in `ids`, one after the other."""
    return any(ids[i : i + len(value)] == value for i in range(len(ids) - len(value) + 1))


def task_runs(
    model,
    tasks: Mapping[int, Mapping[str, Task]],
    methods: Mapping[str, Compressor | None],
    chunk_size: int = 64,
) -> pd.DataFrame:
    """A row per `task`, `length` of the prompt, method, text and value: is it `right`?

    `tasks` are given by length and name. Methods are asked what dense attention, the first of
    them, answers with more than `ENOUGH` of the values.
    """
    require(next(iter(methods)) == BASELINE, "methods", list(methods), f"{BASELINE} in front")
    feeding, rows, possible = feeding_of(methods, chunk_size), [], set()
    for name, method in progress(methods.items(), desc="tasks"):
        for length, group in tasks.items():
            for kind, task in group.items():
                if name != BASELINE and (length, kind) not in possible:
                    continue
                found = answer(model, task, method, **feeding[name])
                if np.mean([np.mean(one) for one in found]) > ENOUGH:
                    possible.add((length, kind))
                where = {"task": kind, "length": length, "method": name}
                rows += [
                    where | {"text": text, "right": right}
                    for text, one in enumerate(found)
                    for right in one
                ]
    return pd.DataFrame(rows)
