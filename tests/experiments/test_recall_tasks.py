"""Needles, streams of facts and when to cut: what is asked and what counts, against plain loops."""

import copy
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import TOVA, FixSizeL2, L2Compress, Pyramid, SnapKV, StreamingLLM, generate, load_model
from lib.experiments.recall.facts import subjects
from lib.experiments.recall.passkeys import CUTS, Passkeys, passkey_runs, read_prompts, retrieve
from lib.experiments.recall.sentences import context_told, cut_told, stream_title, tasks_told
from lib.experiments.recall.stream import (
    fact_stream,
    stream_places,
    stream_runs,
    token_stream,
    word_stream,
)
from lib.experiments.recall.tables import recall_table
from lib.experiments.recall.tasks import (
    KEYS,
    SINGLE,
    VALUES,
    VARIABLES,
    Task,
    answer,
    holds,
    scatter,
    task_runs,
    token_tasks,
    word_tasks,
)
from lib.measure.perplexity import Evaluation

ZEROS = torch.zeros(3, 120, dtype=torch.long)  # a text in which every other token was put there


def test_subjects_differ():
    names = subjects(np.random.default_rng(0))
    assert len(names) == len(set(names)) > 800
    words = [word for name in names[:29] for word in name.split("'s ")]
    assert len(words) == len(set(words))


def test_needles_stand_in_stretches_of_their_own():
    needles = [[[1, 2, 3], [4], [5] * 39], [[6] * 10, [7] * 20, [8] * 5], [[9], [10], [11]]]
    for seed in range(20):
        prompts = scatter(ZEROS, needles, np.random.default_rng(seed))
        for prompt, said in zip(prompts.tolist(), needles, strict=True):
            assert [token for token in prompt if token] == sum(said, [])
            for i, needle in enumerate(said):
                start = prompt.index(needle[0])
                assert prompt[start : start + len(needle)] == needle
                assert 1 + 39 * i <= start
                assert start + len(needle) <= 1 + 39 * (i + 1)
    with pytest.raises(ValueError, match="texts=120"):
        scatter(ZEROS, [[[1] * 40] * 3] * 3, np.random.default_rng(0))


def test_token_tasks():
    tasks = token_tasks(ZEROS, vocab_size=50, cue=5, answer=2)
    for (name, task), count in zip(tasks.items(), (1, 4), strict=True):
        assert name in (SINGLE, KEYS)
        for prompt, question, values in zip(
            task.prompts, task.questions.tolist(), task.values, strict=True
        ):
            assert int((prompt > 0).sum()) == 7 * count
            (value,) = values
            assert holds(prompt.tolist(), question + value)
    asked = [prompt[prompt > 0].tolist() for prompt in tasks[KEYS].prompts]
    pairs = zip(asked, tasks[KEYS].questions.tolist(), strict=True)
    assert {spans.index(question[0]) // 7 for spans, question in pairs} != {0}


def told(tokenizer, task: Task):
    """Prompts, questions and values as text."""
    for prompt, question, values in zip(task.prompts, task.questions, task.values, strict=True):
        yield (
            tokenizer.decode(prompt),
            tokenizer.decode(question),
            *[map(tokenizer.decode, values)],
        )


def test_word_tasks_can_be_solved_by_reading():
    _, tokenizer = load_model("reference")
    texts = torch.full((6, 300), tokenizer(".", add_special_tokens=False).input_ids[0])
    tasks = word_tasks(texts, tokenizer)
    assert list(tasks) == [SINGLE, KEYS, VALUES, VARIABLES]
    for name in (SINGLE, KEYS):
        for prompt, question, values in told(tokenizer, tasks[name]):
            numbers = dict(re.findall(r"The number of (\w+'s \w+) is (\d{5})\.", prompt))
            assert len(numbers) == {SINGLE: 1, KEYS: 4}[name]
            subject = re.fullmatch(r" The number of (\w+'s \w+) is", question)[1]
            assert list(values) == [f" {numbers[subject]}"]
    for prompt, question, values in told(tokenizer, tasks[VALUES]):
        subject = re.fullmatch(r" The 4 numbers of (\w+'s \w+) are", question)[1]
        found = re.findall(rf"One of the numbers of {subject} is( \d{{5}})\.", prompt)
        assert found == list(values)
        assert len(set(found)) == 4
    for prompt, question, values in told(tokenizer, tasks[VARIABLES]):
        value, names = re.fullmatch(r" The 4 variables with the value( \d{5}) are", question)[1], []
        given = {before: name for name, before in re.findall(r"Let( \w+) =( \w+)\.", prompt)}
        while value in given:
            value = given[value]
            names.append(value)
        assert names == list(values)
        assert len(set(names)) == 4
    again = word_tasks(texts, tokenizer)
    assert torch.equal(tasks[KEYS].prompts, again[KEYS].prompts)
    assert not torch.equal(tasks[KEYS].prompts, word_tasks(texts, tokenizer, seed=1)[KEYS].prompts)


def test_holds():
    assert holds([1, 2, 3, 4], [2, 3])
    assert holds([1, 2], [1, 2])
    assert not holds([1, 2, 3, 4], [2, 4])
    assert not holds([1, 12], [1, 1, 2])
    assert not holds([2], [2, 3])


def own_words(model, method=None) -> Task:
    """A task of which the model says one value, and not the other."""
    prompts, questions = tiny_ids(4, 24), tiny_ids(4, 5) % 7
    given = torch.cat((prompts, questions), dim=1)
    said = generate(model, given, method, max_new_tokens=8).tokens.tolist()
    return Task(prompts, questions, [[one[1:3], [*one[1:3], 60 - one[3]]] for one in said])


@pytest.mark.parametrize("method", [None, StreamingLLM(2, 8)])
def test_an_answer_holds_what_greedy_decoding_says(method):
    model = cached_model("neox_25", torch.float64)
    task = own_words(model, method)
    given = torch.cat((task.prompts, task.questions), dim=1)
    said = generate(model, given, method, max_new_tokens=10).tokens.tolist()  # 2 * (2 + 3)
    words = ["".join(map(chr, one)) for one in said]
    expected = [
        ["".join(map(chr, value)) in text for value in values]
        for text, values in zip(words, task.values, strict=True)
    ]
    found = answer(model, task, method)
    assert found == expected
    assert all(one[0] for one in found)
    assert not any(one[1] for one in found)


def test_methods_are_asked_what_dense_attention_can_do():
    model = cached_model("neox_25", torch.float64)
    task = own_words(model)
    easy = Task(task.prompts, task.questions, [one[:1] for one in task.values])
    hard = Task(task.prompts, task.questions, [one[1:] for one in task.values])
    methods = {"baseline": None, "streaming_10": StreamingLLM(2, 8)}
    runs = task_runs(model, {24: {"easy": easy, "half": task, "hard": hard}}, methods)
    table = recall_table(runs, ["task", "method"]).set_index(["task", "method"])
    assert list(table.index) == [
        ("easy", "baseline"),
        ("half", "baseline"),
        ("hard", "baseline"),
        ("easy", "streaming_10"),
    ]
    assert table.loc[("easy", "baseline"), "accuracy_%"] == 100
    assert table.loc[("half", "baseline"), "accuracy_%"] == 50
    assert table.loc[("half", "baseline"), "n_questions"] == 8
    right = answer(model, easy, StreamingLLM(2, 8))
    share = 25.0 * sum(one[0] for one in right)
    assert table.loc[("easy", "streaming_10"), "accuracy_%"] == pytest.approx(share)
    with pytest.raises(ValueError, match="methods="):
        task_runs(model, {}, {"streaming_10": StreamingLLM(2, 8)})


LOOKING = [TOVA(10), SnapKV(10, window_size=4), FixSizeL2(10, skip_layers=())]


def same(one, other) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(
        a.keys.shape == b.keys.shape and torch.allclose(a.keys, b.keys, atol=1e-9) for a, b in pairs
    )


@pytest.mark.parametrize("method", LOOKING, ids=lambda method: method.name)
def test_a_prompt_may_be_cut_once_before_or_after_the_question(method):
    """Against the whole of it read in one step, which is dense, and cut by that step."""
    model = cached_model("llama_gqa", torch.float64)
    prompts, question = tiny_ids(3, 30), tiny_ids(3, 6)
    once = read_prompts(model, prompts, method, chunk_size=30)
    assert same(read_prompts(model, prompts, method, chunk_size=7, cut="prompt"), once)
    assert not same(read_prompts(model, prompts, method, chunk_size=7), once)
    later = read_prompts(model, prompts, method, chunk_size=7, cut="question")
    assert later.cached_lengths == [30, 30]
    model(input_ids=question, past_key_values=later, use_cache=True)
    whole = torch.cat((prompts, question), dim=1)
    assert same(later, read_prompts(model, whole, method, chunk_size=36))


@torch.no_grad()
def test_a_question_that_takes_part_in_the_cut_leaves_its_last_token():
    model = cached_model("llama_gqa", torch.float64)
    keys = Passkeys(tiny_ids(4, 30), [0.4], [tiny_ids(4, 8)], 2)
    method, seen = TOVA(10), []
    right = retrieve(model, keys, method, cut="question")
    whole = torch.cat((keys.prompts, keys.questions[0]), dim=1)
    cache = read_prompts(model, whole[:, :35], method, chunk_size=35)
    for token in (35, 36):  # the answer's tokens find what the cut left, and those before them
        given = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
        seen.append(model(input_ids=whole[:, 35 : token + 1], **given).logits)
    expected = [(logits[:, -1].argmax(-1) == whole[:, 36 + i]) for i, logits in enumerate(seen)]
    assert torch.equal(right[:, 0], torch.stack(expected, dim=1))


def test_what_can_not_be_cut_once_is_refused():
    model, prompts = cached_model("llama_gqa", torch.float64), tiny_ids(1, 30)
    for method in (L2Compress(0.5), Pyramid(TOVA, 14)):
        for cut in ("prompt", "question"):
            with pytest.raises(ValueError, match="cut="):
                read_prompts(model, prompts, method, cut=cut)
    with pytest.raises(ValueError, match="cut='later'"):
        read_prompts(model, prompts, TOVA(10), cut="later")


def test_dense_attention_is_never_cut():
    model = cached_model("neox_25", torch.float64)
    keys = {24: Passkeys(tiny_ids(4, 24), [0.4], [tiny_ids(4, 8)], 2)}
    one, *others = (passkey_runs(model, keys, {"baseline": None}, cut=cut) for cut in CUTS)
    assert all(one.equals(other) for other in others)
    assert torch.equal(keys[24].first(2).prompts, keys[24].prompts[:2])
    assert keys[24].first(2).questions[0].shape == (2, 8)


@pytest.mark.parametrize("every", [5, 8, 20])
def test_facts_in_a_stream(every):
    size, distances = 5, [6, 20, 60]
    places = stream_places(120, size, distances, every)
    begins = [start for start, _ in places] + [start + distance for start, distance in places]
    assert all(abs(a - b) >= size for a, b in combinations(begins, 2))
    assert min(begins) == 1
    assert max(begins) + size <= 120
    assert {distance for _, distance in places} == set(distances)
    starts = [start for start, _ in places]
    assert all(b - a >= every for a, b in zip(starts, starts[1:], strict=False))
    facts = torch.arange(3 * 30 * size).view(3, 30, size) + 1
    stream = fact_stream(ZEROS, facts, distances, every, slice(3, 5))
    for row, ids in enumerate(stream.ids):
        for i, (start, distance) in enumerate(places):
            fact = facts[row, i].tolist()
            for place in (start, start + distance):
                assert ids[place : place + size].tolist() == fact
        assert int((ids > 0).sum()) == 2 * size * len(places)
    assert sorted(stream.asked) == sorted((d, start + d) for start, d in places)


def test_streams_that_do_not_fit_are_refused():
    for distances in ([4, 20], [20, 115]):
        with pytest.raises(ValueError, match="distances="):
            stream_places(120, 5, distances, 10)
    with pytest.raises(ValueError, match="every="):
        stream_places(120, 5, [20], 4)
    with pytest.raises(ValueError, match="facts=1"):
        fact_stream(ZEROS, torch.ones(3, 1, 5, dtype=torch.long), [20], 10, slice(3, 5))


def test_facts_in_tokens_and_in_words():
    stream = token_stream(ZEROS, [10, 40], 12, vocab_size=50, cue=5, answer=2)
    assert stream.answer == slice(5, 7)
    for distance, start in stream.asked:
        again, said = (stream.ids[:, at : at + 7] for at in (start, start - distance))
        assert torch.equal(again, said)
        assert (said > 0).all()
    _, tokenizer = load_model("reference")
    stream = word_stream(torch.zeros(2, 400, dtype=torch.long), [40, 150], 40, tokenizer)
    texts = []
    for distance, start in stream.asked:
        for row in stream.ids:
            fact = tokenizer.decode(
                row[start - distance : start - distance + stream.answer.stop + 1]
            )
            found = re.fullmatch(r" The number of (\w+'s \w+) is( \d{5})\.", fact)
            where = slice(start + stream.answer.start, start + stream.answer.stop)
            assert tokenizer.decode(row[where]) == found[2]
            texts.append(fact)
    assert len(texts) == len(set(texts)) >= 6


def test_what_counts_as_recalled():
    stream = token_stream(ZEROS, [10, 40], 12, vocab_size=50, cue=5, answer=2)
    correct = torch.rand(3, 119, generator=torch.Generator().manual_seed(0)) < 0.7
    runs = stream_runs(stream, {"baseline": Evaluation(correct.double(), correct, [1])})
    table = recall_table(runs, ["method", "distance"])
    assert table.distance.tolist() == [10, 40]
    for row in table.to_dict("records"):
        by_hand = [
            bool(correct[text, start + 4]) and bool(correct[text, start + 5])
            for distance, start in stream.asked
            if distance == row["distance"]
            for text in range(3)
        ]
        assert row["accuracy_%"] == pytest.approx(100 * np.mean(by_hand))
        assert row["n_questions"] == row["n_texts"] == len(by_hand)
        assert 0 < row["accuracy_%"] < 100


def rows(**columns) -> pd.DataFrame:
    table = pd.DataFrame(columns)
    table["accuracy_%_low"], table["accuracy_%_high"] = 0.0, 100.0
    return table


def test_what_is_said_of_tasks_cuts_and_streams():
    tasks = rows(
        task=["single needle"] * 3 + ["several values"],
        length=64,
        method=["baseline", "tova_32", "streaming_32", "baseline"],
        n_values=8,
        **{"accuracy_%": [90.0, 40.0, 10.0, 25.0]},
    )
    said = tasks_told(tasks)
    assert "Single needle in 64 tokens: dense attention finds 90% (0 to 100) of 8 values" in said
    assert "the best method, tova_32, 40% (0 to 100), not told apart from the next." in said
    assert said.endswith("25% (0 to 100) of 8 values, so that the others are not asked.")
    cuts = rows(method="tova_32", cut=list(CUTS), **{"accuracy_%": [10.0, 20.0, 70.0]})
    said = cut_told(cuts, "tova_32")
    assert said.index("10%") < said.index("chunks") < said.index("20%") < said.index("prompt")
    assert said.endswith("70% (0 to 100) once after the question")
    far = rows(
        method=["baseline", "tova_32"], group=["baseline", "tova"], **{"accuracy_%": [80, 30]}
    )
    assert stream_title(far, 1024).startswith("Of facts said more than 1,024 tokens ago dense")
    assert "80% (0 to 100), the best method, tova, 30%" in stream_title(far, 1024)
    assert "within" in context_told(8192, 8192)
    assert "longer" in context_told(8192, 8193)
