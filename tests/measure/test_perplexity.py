"""What an evaluation says, foreign compress functions, and recomputed windows."""

import math
from types import SimpleNamespace

import pytest
import torch
from reference import cached_model, tiny_ids, tiny_model

from lib import Evaluation, evaluate_recompute, evaluate_with_compression, recent_only_compress
from lib.measure.perplexity import _predicted


def test_evaluation():
    nll = torch.tensor([[0.0, math.log(4)], [math.log(4), math.log(16)]])
    correct = torch.tensor([[True, False], [False, False]])
    result = Evaluation(nll, correct, cache_lengths=[9, 4])
    assert result.ppl == pytest.approx(4.0)  # the geometric mean of 1, 4, 4 and 16
    assert result.accuracy == 0.25
    assert result.cache_length == 9
    assert (result["perplexity"], result["accuracy"]) == (result.ppl, 0.25)
    with pytest.raises(ValueError, match="name='loss': allowed is one of .'perplexity'"):
        result["loss"]


class Digits:
    """A tokenizer whose tokens are the digits of a text."""

    def __call__(self, text: str, **kwargs):
        return SimpleNamespace(input_ids=torch.tensor([[int(digit) for digit in text]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_and_hits_are_those_of_all_logits_at_once(dtype):
    """Among equal logits the first is the likeliest, of which 16 bits have many."""
    logits = torch.randn(2, 40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = logits.argmax(-1)
    target[:, ::3] = torch.arange(28).view(2, 14)
    logits[:, 1::3] = logits[:, 1::3].round()
    target[:, 1::3] = logits[:, 1::3].argmax(-1)
    target[:, 4::6] = 49 - logits[:, 4::6].flip(-1).argmax(-1)  # the last of the likeliest
    nll, right = _predicted(logits, target)
    wide = logits.double().log_softmax(-1)
    assert torch.allclose(nll.double(), -wide.gather(-1, target[..., None])[..., 0], atol=1e-5)
    assert torch.equal(right, wide.argmax(-1) == target)
    assert 0 < int(right.sum()) < right.numel()


def test_results_by_name_as_by_attribute():
    model, text = cached_model("neox_25"), "31415926535897932384"
    functions = [(None, {}), (recent_only_compress, {"window_size": 5}), (lambda pairs: pairs, {})]
    for function, arguments in functions:
        results = evaluate_with_compression(model, Digits(), text, function, arguments, 6)
        assert results["perplexity"] == results.ppl > 1
        assert results["accuracy"] == results.accuracy


def test_a_foreign_function_may_change_what_it_is_given():
    """The step before has seen it all: in place or in copies makes no difference."""

    def halved(pairs):
        return [(key / 2, value / 2) for key, value in pairs]

    def halve(pairs):
        return [(key.div_(2), value.div_(2)) for key, value in pairs]

    model, text = cached_model("neox_25"), "31415926535897932384"
    one, other = (
        evaluate_with_compression(model, Digits(), text, function, chunk_size=6)
        for function in (halved, halve)
    )
    assert torch.equal(one.nll, other.nll)
    assert (one.nll - evaluate_with_compression(model, Digits(), text).nll).abs().max() > 1e-3


def test_recompute_of_several_texts_is_that_of_each():
    model, ids, targets = tiny_model("neox_25"), tiny_ids(2, 20), torch.tensor([7, 12, 19])
    both = evaluate_recompute(model, ids, 6, targets, start_size=2, batch_size=2)
    rows = [evaluate_recompute(model, row, 6, targets, start_size=2) for row in ids]
    torch.testing.assert_close(both, torch.stack(rows))


@pytest.mark.parametrize(("nll", "ppl"), [(709.0, math.exp(709)), (710.0, math.inf), (0.0, 1.0)])
def test_the_highest_perplexities(nll, ppl):
    assert Evaluation(torch.full((3,), nll), torch.zeros(3), [1]).ppl == ppl
