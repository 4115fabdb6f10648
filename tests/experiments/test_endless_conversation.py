"""An endless conversation: its numbers are those of its tokens, its words those of its numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import tiny_model

from lib import Chat, RecentOnly, StreamingLLM, load_tokenizer, plots
from lib.experiments.endless_conversation import conversation as talk
from lib.experiments.endless_conversation import plots as draw
from lib.experiments.endless_conversation.script import SCRIPT, script_of
from lib.measure.stats import mean_ci, share_ci
from lib.measure.words import with_ends

METHODS = {"baseline": None, "recent_only": RecentOnly(24), "streaming": StreamingLLM(4, 20)}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("llama_gqa", vocab_size=len(tokenizer), max_position_embeddings=512)


@pytest.fixture
def chats(model, tokenizer):
    return {name: Chat(model, tokenizer, method, 6) for name, method in METHODS.items()}


@pytest.fixture
def table():
    """Numbers of three turns, as `converse` gives them; the caches are cut in the first."""
    columns = {
        "baseline": ([1.0, 2.0, 3.0], [0.0, 50.0, np.nan], [0.0, 0.0, 0.0], [40, 80, 120]),
        "recent_only": ([1.0, 4.0, 5.5], [0.0, 0.0, 0.0], [0.0, 100.0, 100.0], [32, 32, 32]),
        "streaming": ([1.0, 2.1, 2.9], [0.0, 25.0, 75.0], [0.0, 0.0, 0.0], [32, 32, 32]),
    }
    parts = []
    for method, (nll, repeated, said, kept) in columns.items():
        part = {"turn": [1, 2, 3], "question": ["a", "b", "c"], "answer": ["x", "y | z\n", "w" * 9]}
        part |= {"seen": [40, 80, 120], "cache_length": kept, "nll": nll}
        part |= {"repeated_%": repeated, "said_before_%": said, "ms_per_token": [9.0, 5.0, 7.0]}
        parts.append(pd.DataFrame(part).assign(method=method))
    return pd.concat(parts, ignore_index=True)


def test_the_script_asks_back_about_what_was_said():
    assert len(SCRIPT) == 40
    about = {4: "Ada", 8: "Pip", 12: "Ada", 16: "sleeping", 20: "Pip", 24: "sea", 28: "rain"}
    about |= {32: "Ada", 39: "France"}
    assert {number for number, turn in enumerate(SCRIPT, start=1) if turn.back} == set(about)
    for number, word in about.items():
        turn = SCRIPT[number - 1]
        asked = SCRIPT[number - 1 - turn.back]
        assert word in turn.reference
        assert word in asked.question
    assert script_of(42) == [*SCRIPT, *SCRIPT[:2]]


def test_numbers_are_those_of_the_tokens(model, tokenizer, chats):
    turns = script_of(3)
    runs = talk.converse(chats, turns)
    assert runs.method.tolist() == [*METHODS] * 3
    assert runs.turn.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for name, method in METHODS.items():
        alone = Chat(model, tokenizer, method, 6)  # without anything measured in between
        answers = [alone.say(turn.question) for turn in turns]
        rows = runs[runs.method == name]
        assert rows.answer.tolist() == answers
        assert rows.question.tolist() == [turn.question for turn in turns]
        assert chats[name].tokens == alone.tokens
        assert rows.seen.iloc[-1] == len(alone.tokens)
        kept = rows.seen if method is None else [24] * 3
        assert rows.cache_length.tolist() == list(kept)
        assert (rows.ms_per_token > 0).all()


def test_the_reference_answer_is_scored_as_if_fed(model, tokenizer):
    chat = Chat(model, tokenizer)
    chat.hear("Why is the sky blue?")
    tokens, logits = list(chat.tokens), chat.logits.clone()
    answer = tokenizer("Because of the air.").input_ids
    with torch.no_grad():
        whole = model(torch.tensor([tokens + answer])).logits[0].log_softmax(-1)
    begin = len(tokens) - 1
    losses = [-float(whole[begin + place, token]) for place, token in enumerate(answer)]
    nll = talk.reference_nll(chat, "Because of the air.")
    assert nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert chat.tokens == tokens
    assert chat.cache.get_seq_length() == len(tokens)
    assert torch.equal(chat.logits, logits)


def test_what_was_said_before(tokenizer):
    class Parrot:
        """A chat that gives these answers."""

        def __init__(self, *answers):
            self.answers, self.tokens = iter(answers), []
            self.model, self.cache = tiny_model("llama"), None

        def hear(self, question):
            self.tokens.append(0)

        def answer(self):
            self.tokens += [1, 2]
            return next(self.answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(talk, "reference_nll", lambda chat, reference: 1.0)
        patch.setattr(talk, "held_lengths", lambda cache: [5, 7])
        runs = talk.converse({"a": Parrot("x", "y", "x"), "b": Parrot("y", "y", "z")}, script_of(3))
    assert runs[runs.method == "a"]["said_before_%"].tolist() == [0, 0, 100]
    assert runs[runs.method == "b"]["said_before_%"].tolist() == [0, 100, 0]
    assert runs.cache_length.tolist() == [7] * 6
    assert runs["repeated_%"].isna().all()  # answers of two tokens have no 4-grams


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], 0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
        ([7] * 10, 6 / 7),
    ],
)
def test_repeated(ids, expected):
    assert talk.repeated(ids) == pytest.approx(expected)
    seen, again = [], 0
    for start in range(len(ids) - 3):
        again += ids[start : start + 4] in seen
        seen.append(ids[start : start + 4])
    assert talk.repeated(ids) == pytest.approx(again / len(seen))


def test_short_answers_have_no_share():
    assert np.isnan(talk.repeated([1, 1, 1]))


def test_caches_are_full_when_all_are_cut(table):
    assert talk.all_full(table) == 2
    table.loc[(table.method == "recent_only") & (table.turn == 1), "cache_length"] = 40
    assert talk.all_full(table) == 3
    table.loc[table.method == "recent_only", "cache_length"] = table.seen
    assert talk.all_full(table) == 4  # never


def test_summary_is_paired_by_turn(table):
    table = table.sample(frac=1, random_state=0).sort_values("turn", kind="stable")
    rows = talk.summary(table, 2).set_index("method")
    window = rows.loc["recent_only"]
    assert window.nll == pytest.approx(4.75)
    assert with_ends(window, "nll_difference")[0] == pytest.approx(mean_ci([2.0, 2.5]))
    said = np.array(with_ends(window, "said_before_%")[0]) / 100
    assert said.tolist() == pytest.approx(share_ci(2, 2))
    # dense has no 4-grams in its last answer
    assert rows.loc["streaming", "repeated_difference"] == pytest.approx(-25)
    assert np.isnan(rows.loc["streaming", "repeated_difference_low"])
    assert rows.kept.to_dict() == {"baseline": 120, "recent_only": 32, "streaming": 32}
    assert rows.n_turns.tolist() == [2, 2, 2]
    assert window.ms_per_token == 6


def test_a_summary_of_no_turns_has_no_numbers(table):
    rows = talk.summary(table, 4).set_index("method")
    assert (
        rows.loc["recent_only", ["nll", "said_before_%", "repeated_%", "ms_per_token"]].isna().all()
    )
    assert rows.loc["recent_only", "n_turns"] == 0
    assert draw.title(rows.reset_index()).count("is not told apart from dense") == 2


def test_answers_side_by_side(table):
    answers = talk.answers_side_by_side(table, [2, 3], length=5)
    assert list(answers.columns) == ["turn", "question", "dense", "window", "sinks + window"]
    assert answers.window.tolist() == ["y / z", "wwwww ..."]
    assert answers.turn.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((1.5, 1.0, 2.0), "loses 1.5 nats a token (1 to 2)"),
        ((-1.5, -2.0, -1.0), "gains 1.5 nats a token (1 to 2)"),
        ((1.5, -0.1, 2.0), "is not told apart from dense"),
        ((-0.5, -2.0, 0.1), "is not told apart from dense"),
        ((0.0, 0.0, 0.0), "is not told apart from dense"),
        ((np.nan, np.nan, np.nan), "is not told apart from dense"),
    ],
)
def test_verdicts_need_their_interval(ends, told):
    assert draw.against_dense(ends, "nats a token", "loses", "gains") == told


@pytest.mark.parametrize(("low", "word"), [(70.0, "can be read"), (60.0, "can't be read")])
def test_the_collapse_is_told_only_where_it_shows(table, low, word):
    rows = talk.summary(table, 2)
    assert rows["said_before_%_high"][0] == pytest.approx(100 * share_ci(0, 2)[2])  # 65.8%
    rows.loc[rows.method == "recent_only", "said_before_%_low"] = low
    assert draw.worst_turn(table) == 3  # 2.5 nats, after 2
    told = draw.shown_in_words(rows, talk.answers_side_by_side(table, [1, 2]), 2)
    assert word in told
    assert (
        'at turn 2, "b" is answered: dense "y / z"; window "y / z"; sinks + window "y / z".' in told
    )


def test_panels(table):
    long = pd.concat(table.assign(turn=table.turn + 3 * part) for part in range(7))
    for runs, points in ((table, 3), (long.sort_values("turn"), 21)):
        _, axes = plots.subplots(3, 2)
        draw.panels(axes, runs.reset_index(drop=True), full=2)
        window = [line for line in axes.flat[1].get_lines() if line.get_label() == "window"]
        own, dense = (
            runs[runs.method == name].nll.to_numpy() for name in ("recent_only", "baseline")
        )
        difference = pd.Series(own - dense)
        if points == 21:  # lines are means over five turns
            difference = difference.rolling(5, center=True, min_periods=1).mean()
        assert window[0].get_ydata().tolist() == pytest.approx(difference.tolist())
        assert [text.get_text().strip() for text in axes.flat[0].texts] == ["caches full"]
