"""Numbers in words: their spread, and whether they are told apart."""

from types import SimpleNamespace

import pandas as pd
import pytest

from lib.measure.words import apart, difference, estimate, told


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1.2811, 1.18, 1.406), "1.28x (1.18 to 1.41)"),
        ((0.8, 0.7, 0.9), "0.8x (0.7 to 0.9)"),
        ((1.01, 0.99, 1.03), "1.01x (0.99 to 1.03), not told apart"),
        ((1.1, 1.0, 1.3), "1.1x (1 to 1.3), not told apart"),
        ((1.0, 1.0, 1.0), "1x (1 to 1)"),
    ],
)
def test_a_ratio_in_words_says_whether_it_is_told_apart(numbers, words):
    names = ("ratio", "ratio_low", "ratio_high")
    assert told(SimpleNamespace(**dict(zip(names, numbers, strict=True)))) == words
    quartiles = pd.Series(dict(zip(("x", "x_q1", "x_q3"), numbers, strict=True)))
    assert told(quartiles, "x") == words.replace("(", "[").replace(")", "]")
    assert apart(numbers) == words


def test_an_estimate_in_words():
    row = pd.Series({"accuracy_%": 50, "accuracy_%_low": 35.04, "accuracy_%_high": 67.2})
    assert estimate(row) == "50% (35 to 67.2)"
    assert estimate(row, unit=" points") == "50 points (35 to 67.2)"
    heads = pd.Series({"heads_%": 58.25, "heads_low": 54.0, "heads_high": 61.9})
    assert estimate(heads, "heads_%") == "58.2% (54 to 61.9)"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1.2, 1.0, 2.0), "loses 1.2 nats (1 to 2)"),
        ((-1.2, -2.0, -1.0), "gains 1.2 nats (1 to 2)"),
        ((1.2, -0.1, 2.0), None),
        ((0.0, 0.0, 0.0), None),
    ],
)
def test_a_difference_in_words_says_its_side(numbers, words):
    assert difference(numbers, "loses", "gains", " nats") == words
