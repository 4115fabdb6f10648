"""Copying and passkeys: where the spans stand, and what counts as recalled, against plain loops."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import cached_model, tiny_ids
from scipy.stats import spearmanr

from lib import TOVA, FixSizeL2, RecentOnly, StreamingLLM, evaluate, generate, load_model
from lib.experiments.recall.copying import copying_runs, nested_copies, price_table
from lib.experiments.recall.passkeys import (
    FACTS,
    Passkeys,
    passkey_runs,
    retrieve,
    sentence_passkeys,
    token_passkeys,
)
from lib.experiments.recall.sentences import (
    agreement,
    best_told,
    copying_title,
    hidden,
    leaders,
    price_title,
)
from lib.experiments.recall.tables import recall_table
from lib.measure.perplexity import Evaluation
from lib.measure.rows import rows_of
from lib.measure.stats import mean_ci, share_ci

ZEROS = torch.zeros(3, 60, dtype=torch.long)  # a text in which every other token was put there


def test_nested_copies():
    copies = nested_copies(ZEROS, [21, 5, 40], span=4, vocab_size=50, seed=1)
    assert copies.distances == [5, 21, 40]
    for row in copies.ids.tolist():
        put = [place for place, token in enumerate(row) if token]
        assert len(put) == 3 * 2 * 4
        for distance, b in zip(copies.distances, copies.second, strict=True):
            a = b - distance
            assert row[a : a + 4] == row[b : b + 4]
            assert all(0 < token < 50 for token in row[a : a + 4])
        assert put == [place for place in range(60) if not copies.is_text[place]]
    first = [b - distance for distance, b in zip(copies.distances, copies.second, strict=True)]
    order = [*reversed(first), *copies.second]
    assert order == sorted(order)  # nested
    assert order[-1] + 4 == 60
    assert not torch.equal(copies.ids[0], copies.ids[1])
    again = nested_copies(ZEROS, [5, 21, 40], span=4, vocab_size=50, seed=1)
    assert torch.equal(copies.ids, again.ids)


@pytest.mark.parametrize("distances", [[3], [4, 11], [5, 21, 56]])
def test_copies_that_would_overlap_are_refused(distances):
    with pytest.raises(ValueError, match="distances="):
        nested_copies(ZEROS, distances, span=4, vocab_size=50)
    nested_copies(ZEROS, [4, 12, 55], span=4, vocab_size=50)


def made_up(copies, seed: int) -> Evaluation:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(copies.ids), copies.ids.shape[1] - 1)
    nll = torch.rand(shape, generator=generator)
    return Evaluation(nll, nll < 0.6, [1])


def test_copying_tables():
    copies = nested_copies(ZEROS, [5, 21, 40], span=4, vocab_size=50)
    names = ["baseline", "streaming_16", "x_32"]
    results = {name: made_up(copies, seed) for seed, name in enumerate(names)}
    runs = copying_runs(copies, results, cue=1)
    by_hand = {}  # per text
    for name, result in results.items():
        for distance, start in zip(copies.distances, copies.second, strict=True):
            by_hand[name, distance] = [
                100 * np.mean([bool(row[token - 1]) for token in range(start + 1, start + 4)])
                for row in result.correct
            ]
    accuracy = recall_table(runs, ["method", "distance"])
    assert len(accuracy) == len(by_hand)
    for row in accuracy.to_dict("records"):
        expected = np.array(mean_ci(by_hand[row["method"], row["distance"]])).clip(0, 100)
        found = [row[f"accuracy_%{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx(expected, abs=1e-4)
        assert row["n_texts"] == 3
    price = price_table(copies, results, runs, [16, 32])
    text = [t for t in range(33, 60) if copies.is_text[t]]  # where the largest budget is full
    base = results["baseline"].nll
    assert price[["method", "budget"]].values.tolist() == [
        ["baseline", 16],
        ["streaming_16", 16],
        ["baseline", 32],
        ["x_32", 32],
    ]
    for row in price.to_dict("records"):
        far = [by_hand[row["method"], d] for d in copies.distances if d > row["budget"]]
        assert row["accuracy_%"] == pytest.approx(np.mean(far))
        gaps = [(results[row["method"]].nll - base)[:, t - 1].mean() for t in text]
        assert row["ratio"] == pytest.approx(np.exp(np.mean(gaps)), rel=1e-5)
    with pytest.raises(ValueError, match="budgets="):
        price_table(copies, results, runs, [16, 40])


def rows(accuracy: list[float], ratio: list[float]) -> pd.DataFrame:
    """Rows as of `price_table`, at one budget."""
    table = pd.DataFrame({"accuracy_%": accuracy, "ratio": ratio, "budget": 32})
    table["group"] = list("abcd"[: len(table)])
    ends = {"accuracy_%_low": 0.0, "accuracy_%_high": 100.0}
    return table.assign(**ends)


DENSE = rows([80], [1]).iloc[0]


def test_what_the_titles_of_recall_say():
    table = rows([10, 60, 0, 20], [1.1, 1.5, 1.2, 1.3])
    assert leaders(table).group.tolist() == ["b"]
    assert hidden(table, DENSE).group.tolist() == ["a", "c"]  # below a fifth of 80, near 1
    assert "2 of 4 methods less than a fifth" in copying_title(table, DENSE)
    assert "the best method, b, 60% (0 to 100)" in copying_title(table, DENSE)
    told = (
        "within 25% of dense attention's perplexity: a, c; of these copy less than a fifth as much"
    )
    assert price_title(table, DENSE).endswith(f"{told}: a, c")
    ranks = [2, 4, 1, 3], [1, 4, 2, 3]
    assert f"{spearmanr(*ranks).statistic:+.2f}" in agreement(table)


def test_the_best_of_methods_is_called_a_tie_where_intervals_meet():
    table = rows([10, 60, 20], [1, 1, 1])
    table["accuracy_%_low"], table["accuracy_%_high"] = [5, 45, 10], [15, 75, 44]
    assert best_told(table) == "the best method, b, 60% (45 to 75)"
    table.loc[2, "accuracy_%_high"] = 45  # of the runner-up, not of the row behind the best
    assert best_told(table) == "the best method, b, 60% (45 to 75), not told apart from the next"
    assert best_told(table[1:2]) == "the best method, b, 60% (45 to 75)"


def test_titles_name_no_best_where_none_is():
    level = rows([50, 0, 50, 50], [2.0, 2.0, 3.0, 2.0])
    assert leaders(level).group.tolist() == ["a", "c", "d"]
    assert best_told(level) == "3 of 4 methods, level at the top, 50%"
    assert price_title(level, DENSE).endswith(
        "perplexity: no method"
    )  # no perplexity is near dense attention's
    for constant in (rows([0, 0, 0], [1.1, 1.2, 1.3]), rows([10, 20], [1, 1]), rows([30], [1.2])):
        assert "no rank correlation" in agreement(constant)
        nothing = rows([0], [1]).iloc[0]
        for dense in (DENSE, nothing):
            said = copying_title(constant, dense) + price_title(constant, dense)
            assert "nan" not in said
            assert ("best" in said) == (constant["accuracy_%"].max() > 0)
        assert "fifth" not in said  # of nothing


def test_token_passkeys():
    depths = [0.0, 0.5, 1.0]
    keys = token_passkeys(ZEROS, depths, vocab_size=50, cue=5, answer=2)
    assert [question.shape for question in keys.questions] == [(3, 7)] * 3
    for row, prompt in enumerate(keys.prompts.tolist()):
        for start, question in zip((1, 27, 53), keys.questions, strict=True):
            assert prompt[start : start + 7] == question[row].tolist()
        assert sum(token > 0 for token in prompt) == 3 * 7
        assert prompt[0] == 0
    for depths in ([0.0, 0.1], [0.5, 0.2], [1.5]):
        with pytest.raises(ValueError, match="depths="):
            token_passkeys(ZEROS, depths, 50, 5, 2)


def test_sentence_passkeys():
    _, tokenizer = load_model("reference")
    keys = sentence_passkeys(torch.zeros(3, 200, dtype=torch.long), [0.1, 0.8], tokenizer, digits=3)
    for fact, question in zip(FACTS[:2], keys.questions, strict=True):
        for row, prompt in zip(question, keys.prompts, strict=True):
            asked, answer = row[: -keys.answer], tokenizer.decode(row[-keys.answer :])
            assert tokenizer.decode(asked) == f" {fact}"
            sentence = f" {fact}{answer}. Remember it."
            assert tokenizer.decode(prompt).count(sentence) == 1
            assert answer.startswith(" ")
            assert len(answer) == 4
            assert int(answer) > 0


def likely_passkeys(model, length: int) -> Passkeys:
    """Questions of which the model gets some tokens right: its own words, one altered."""
    prompts, cues = tiny_ids(4, length), tiny_ids(4, 5) % 7
    said = generate(model, torch.cat((prompts, cues), dim=1), max_new_tokens=3).tokens
    said[0, 1] = (said[0, 1] + 1) % 61
    return Passkeys(prompts, [0.3, 0.6], [torch.cat((cues, said), 1), tiny_ids(4, 9)], 3)


@pytest.mark.parametrize(
    ("method", "buffer"),
    [
        (None, 0),
        (RecentOnly(10), 0),
        (StreamingLLM(2, 8), 0),
        (StreamingLLM(2, 8), 5),
        (FixSizeL2(10, skip_layers=()), 0),
        (TOVA(10), 0),
    ],
)
def test_retrieve(method, buffer):
    """Against each question asked alone, the prompt read anew for it."""
    model = cached_model("neox_25", torch.float64)
    keys = likely_passkeys(model, 24)
    right = retrieve(model, keys, method, chunk_size=24, buffer=buffer)
    assert right.shape == (4, 2, 3)
    if method is None:
        assert right[:, 0].tolist() == [[True, False, right[0, 0, 2]]] + [[True] * 3] * 3
    for depth, question in enumerate(keys.questions):
        ids = torch.cat((keys.prompts, question), dim=1)
        # the same steps, the prompt and the question
        correct = evaluate(model, ids, method, chunk_size=24, buffer=buffer).correct
        assert torch.equal(right[:, depth], correct[:, -3:])


def test_an_answer_is_what_greedy_decoding_says():
    model = cached_model("neox_25", torch.float64)
    keys = likely_passkeys(model, 20)
    for method in (None, StreamingLLM(2, 8)):
        right = retrieve(model, keys, method).all(-1)
        for depth, question in enumerate(keys.questions):
            prompt = torch.cat((keys.prompts, question[:, :-3]), dim=1)
            said = generate(model, prompt, method, max_new_tokens=3).tokens
            assert torch.equal(right[:, depth], (said == question[:, -3:]).all(1))
    assert retrieve(model, keys).all(-1).any()


def test_passkey_tables():
    model = cached_model("neox_25", torch.float64)
    keys = {length: likely_passkeys(model, length) for length in (16, 24)}
    runs = passkey_runs(
        model, keys, rows_of(["streaming"], [8], 2, include_recent_only=False), chunk_size=4
    )
    assert len(runs) == 2 * 2 * 2 * 4
    whole = recall_table(runs, ["method", "length"]).set_index(["method", "length"])
    table = recall_table(runs, ["method", "length", "depth"])
    for name, method in {"baseline": None, "streaming_8": StreamingLLM(2, 6)}.items():
        for length, one in keys.items():
            exact = [[all(row) for row in text] for text in retrieve(model, one, method).tolist()]
            rows = table[(table.method == name) & (table.length == length)]
            assert rows.depth.tolist() == [0.3, 0.6]
            assert rows.n_texts.tolist() == rows.n_questions.tolist() == [4, 4]
            expected = [25.0 * sum(text[depth] for text in exact) for depth in (0, 1)]
            assert rows["accuracy_%"].tolist() == pytest.approx(expected)
            row, each = whole.loc[name, length], [sum(text) / 2 for text in exact]
            found = [row[f"accuracy_%{end}"] / 100 for end in ("", "_low", "_high")]
            assert found == pytest.approx(share_ci(sum(each), 4))  # a text counts once
            assert found[1] < found[2]  # also where all agree
            assert (row["n_texts"], row["n_questions"]) == (4, 8)


def test_the_reference_model_retrieves_what_it_can_see():
    model, tokenizer = load_model("reference")
    texts = torch.ones(8, 200, dtype=torch.long)
    texts[:, 0] = tokenizer.bos_token_id
    keys = token_passkeys(texts, [0.2, 0.7], tokenizer.vocab_size)
    dense = retrieve(model, keys).float().mean((0, 2))
    window = retrieve(model, keys, RecentOnly(100)).float().mean((0, 2))
    assert dense.min() > 0.4
    assert window[1] > 0.4
    assert window[0] == 0  # out of the window: a random token can't be guessed
