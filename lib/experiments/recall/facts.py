"""Facts in words, made up: someone's thing has a number, which no model can guess."""

import numpy as np

NAMES = (
    "Anna Tom Lucy Paul Mary Jack Emma Fred Rosa Carl Alice Hugh Clara Peter Nina Oscar "
    "Laura Simon Helen Frank Martha George Julia Henry Sarah Robert Grace Walter Diana Victor"
)
THINGS = (
    "lamp bridge violin horse garden boat copper castle letter window basket mirror hammer ticket "
    "candle ladder blanket wagon bottle drum kettle saddle tower pencil guitar jacket anchor piano "
    "carpet"
)


def subjects(rng: np.random.Generator) -> list[str]:
    """All subjects such as `Anna's lamp`; a word comes again as late as can be."""
    names, things = (rng.permutation(words.split()) for words in (NAMES, THINGS))
    # 30 names and 29 things, which share no factor: all pairs come once
    pairs = ((i % len(names), i % len(things)) for i in range(len(names) * len(things)))
    return [f"{names[name]}'s {things[thing]}" for name, thing in pairs]


def question(subject: str) -> str:
    """How a fact begins; the value that follows, and a full stop, make it the fact."""
    return f" The number of {subject} is"


def number(rng: np.random.Generator, digits: int = 5) -> str:
    """A number with a space in front, as it stands in a sentence; without zeros."""
    return " " + "".join(str(digit) for digit in rng.integers(1, 10, digits))


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, without special tokens."""
    return tokenizer(text, add_special_tokens=False).input_ids
