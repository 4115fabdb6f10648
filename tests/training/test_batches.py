"""What the reference model is trained on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import tiny_model

from lib.training.batches import EOS, IGNORE, copying_loss, make_batch, train_tokenizer

VOCAB = 200
COUNTING = np.arange(1, 5000)  # a text in which a token tells its place
batches = settings(max_examples=40, deadline=None)
shapes = {"context": st.integers(27, 80), "seed": st.integers(0, 1000)}


def batch(context: int, seed: int, copy_share=0.0, repeat_share=0.0):
    rng = np.random.default_rng(seed)
    ids, labels = make_batch(COUNTING, 6, context, rng, VOCAB, copy_share, repeat_share)
    assert ids.shape == labels.shape == (6, context)
    assert ids.dtype == labels.dtype == torch.int64
    assert (ids[:, 0] == EOS).all()
    assert (ids[:, 1:] != EOS).all()
    known = labels[:, :-1] != IGNORE
    assert torch.equal(labels[:, :-1][known], ids[:, 1:][known])  # the label is the next token
    return ids, labels


@batches
@given(**shapes)
def test_rows_of_text(context, seed):
    ids, labels = batch(context, seed)
    assert (labels != IGNORE).all()
    assert (ids[:, 1:].diff(dim=1) == 1).all()  # a stretch of the text
    assert torch.equal(labels[:, -1], ids[:, -1] + 1)
    assert len(ids[:, 1].unique()) > 1


@batches
@given(**shapes)
def test_rows_with_a_copied_span(context, seed):
    ids, labels = batch(context, seed, copy_share=1.0)
    assert (labels != IGNORE).all()
    for row in torch.cat((ids[:, 1:], labels[:, -1:]), dim=1).tolist():
        # the text counts up, but for one span that was there before
        start = row[0]
        copied = [place for place, token in enumerate(row) if token != start + place]
        assert 8 <= len(copied) < context // 3
        assert copied == [*range(copied[0], copied[-1] + 1)]
        back = {place - (row[place] - start) for place in copied}
        assert len(back) == 1
        assert back.pop() >= len(copied)  # it does not overlap what it copies


@batches
@given(**shapes)
def test_rows_that_repeat(context, seed):
    ids, labels = batch(context, seed, repeat_share=1.0)
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        period = label.count(IGNORE)
        assert 8 <= period < context // 2
        # the first time nothing can be known, and from then on all can
        assert label[:period] == [IGNORE] * period
        text = row[1:] + label[-1:]
        assert all(text[i] == text[i - period] for i in range(period, context))
        assert label[period:] == text[period:]
        assert max(text) < VOCAB


def test_shares_of_the_mix():
    rng = np.random.default_rng(0)
    ids, labels = make_batch(COUNTING, 2000, 32, rng, VOCAB, 0.3, 0.2)
    repeated = (labels == IGNORE).any(1)
    plain = (ids[:, 1:].diff(dim=1) == 1).all(1)
    assert repeated.float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert (~plain & ~repeated).float().mean().item() == pytest.approx(0.3, abs=0.04)


class Copier:
    """A model that is sure that the token `length` places back comes again."""

    config = SimpleNamespace(vocab_size=VOCAB)
    device = torch.device("cpu")

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids, use_cache):
        following = input_ids.roll(self.length - 1, dims=1)
        return SimpleNamespace(logits=20.0 * torch.nn.functional.one_hot(following, VOCAB))


def test_copying_loss():
    assert copying_loss(Copier(10), batch_size=3, length=10) < 1e-5
    assert copying_loss(Copier(11), batch_size=3, length=10) > 15
    model = tiny_model("neox_25", torch.float32)
    model.get_output_embeddings().weight.data.zero_()
    assert copying_loss(model) == pytest.approx(math.log(61), rel=1e-5)


def test_tokenizer():
    text = "\n\n".join(f"def f{n}(x):\n    Return the n-th number of x." for n in range(50))
    tokenizer = train_tokenizer(text, 300)
    assert len(tokenizer) <= 300
    assert tokenizer.convert_ids_to_tokens(EOS) == "<|endoftext|>"
    for sample in (text, "wörter 日本語 \t\n", ""):
        ids = tokenizer(sample).input_ids
        assert ids[0] == EOS
        assert tokenizer.decode(ids[1:]) == sample
    assert len(tokenizer(text).input_ids) < len(text) / 2
    again = train_tokenizer(text, 300)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
