"""A chat feeds each turn once: its tokens are the template's, its answers those of all of them."""

import builtins

import pytest
import torch
from reference import tiny_model
from transformers import TextStreamer

import lib
from lib import Chat, RecentOnly, StreamingLLM, load_model, load_tokenizer
from lib.cache.baseline import held_lengths, make_cache

QUESTIONS = ("What is the capital of France?", "And of Italy?", "Say 12 things\nabout  it, please.")
REWRITTEN = "{% for m in messages %}{{ loop.revindex ~ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2")


@pytest.fixture
def model(tokenizer):
    """A tiny random model with the tokenizer's vocabulary."""
    tiny = tiny_model("llama_gqa", vocab_size=len(tokenizer), max_position_embeddings=512)
    tiny.generation_config.eos_token_id = tokenizer.eos_token_id
    return tiny


@pytest.mark.parametrize("compressor", [None, StreamingLLM(4, 28)])
def test_tokens_are_the_templates_of_the_whole_conversation(compressor):
    model, tokenizer = load_model("smollm2", device="cpu")
    chat = Chat(model, tokenizer, compressor, max_new_tokens=12)
    answers = [chat.say(question) for question in QUESTIONS]
    assert answers[0] == "The capital of France is Paris."  # it ended by itself, others were cut
    assert len(tokenizer(answers[2]).input_ids) == 12
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant"] * 3
    assert [message["content"] for message in chat.messages[1::2]] == answers
    whole = tokenizer.apply_chat_template(chat.messages)["input_ids"]
    assert chat.tokens == whole[:-2]
    assert tokenizer.convert_ids_to_tokens(whole[-2:]) == ["<|im_end|>", "Ċ"]
    assert tokenizer.decode(chat.tokens).count("<|im_end|>\n") == 1 + 3 + 2


@pytest.mark.parametrize("compressor", [None, RecentOnly(24), StreamingLLM(4, 20)])
def test_the_cache_is_that_of_the_tokens_one_by_one(model, tokenizer, compressor):
    chat = Chat(model, tokenizer, compressor, max_new_tokens=5)
    cache, done = make_cache(model, compressor), 0
    for question in QUESTIONS:
        chat.hear(question)
        chosen = []
        for step in range(6):  # the model as it is after each token of the answer
            with torch.no_grad():
                for token in chat.tokens[done:] if step == 0 else chosen[-1:]:
                    ids = torch.tensor([[token]])
                    logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            chosen.append(int(logits[0, -1].argmax()))
            if step == 0:
                assert torch.allclose(chat.logits, logits[:, -1], atol=1e-9)
        begin = len(chat.tokens)
        answer = chat.answer()
        assert chat.tokens[begin:] == chosen[:5]
        assert answer == tokenizer.decode(chosen[:5])
        assert held_lengths(chat.cache) == held_lengths(cache)
        done = len(chat.tokens)


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_where_the_model_says(model, tokenizer, as_list):
    free = Chat(model, tokenizer, max_new_tokens=6)
    free.say(QUESTIONS[0])
    *prompt, one, two, end, _, _, _ = free.tokens
    assert end not in (one, two)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end] if as_list else end
    chat = Chat(model, tokenizer, max_new_tokens=6)
    assert chat.say(QUESTIONS[0]) == tokenizer.decode([one, two])
    assert chat.tokens == [*prompt, one, two]
    chat.hear(QUESTIONS[1])  # the template's end, which is not the model's here
    fed = tokenizer.convert_ids_to_tokens(chat.tokens[len(prompt) :][2:6])
    assert fed == ["<|im_end|>", "Ċ", "<|im_start|>", "user"]


def test_typed_at_the_keyboard(model, tokenizer, monkeypatch, capsys):
    expected = Chat(model, tokenizer, StreamingLLM(4, 20), max_new_tokens=4)
    answers = [expected.say(question) for question in QUESTIONS[:2]]
    typed = iter([*QUESTIONS[:2], "", "never asked"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    chat = Chat(model, tokenizer, StreamingLLM(4, 20), max_new_tokens=4)
    chat.talk()
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)
    assert chat.messages == expected.messages
    assert next(typed) == "never asked"

    def closed(prompt):
        raise EOFError

    monkeypatch.setattr(builtins, "input", closed)
    chat.talk()  # Ctrl-D at a terminal
    assert chat.messages == expected.messages


def test_an_answer_is_shown_as_it_is_written(model, tokenizer, capsys):
    answer = Chat(model, tokenizer, max_new_tokens=4).say("Hello", TextStreamer(tokenizer))
    assert capsys.readouterr().out == f"{answer}\n"


def test_what_can_not_be_is_refused(model, tokenizer):
    reference = load_tokenizer("reference")
    with pytest.raises(ValueError, match="chat_template=None: allowed is a tokenizer with one"):
        Chat(model, reference)
    with pytest.raises(ValueError, match="max_new_tokens=0: allowed is an int >= 1"):
        Chat(model, tokenizer, max_new_tokens=0)


def test_a_template_that_rewrites_what_was_said_is_refused(model):
    tokenizer = load_tokenizer("smollm2")
    tokenizer.chat_template = REWRITTEN
    chat = Chat(model, tokenizer, max_new_tokens=2)
    chat.say("Hello")
    before = list(chat.tokens)
    with pytest.raises(ValueError, match="allowed is one that only adds to what was said before"):
        chat.say("Again")
    assert chat.tokens == before


def test_it_is_public():
    assert lib.Chat.__module__ == "lib.measure.chat"
