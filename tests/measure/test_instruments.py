"""The time inside the attention."""

import time

import pytest
import torch
from reference import FAMILIES, cached_model, tiny_ids
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib import TOVA, StreamingLLM, evaluate, generate
from lib.measure.instruments import watched_attention


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [None, StreamingLLM(1, 5), TOVA(6)], ids=["none", "window", "t"])
def test_every_call_of_the_attention_is_seen(family, method):
    """Ours too, in the prompt of nine tokens; and nothing but the watch changes."""
    model, ids = cached_model(family), tiny_ids(9)
    before = dict(ALL_ATTENTION_FUNCTIONS)
    expected = generate(model, ids, method, 5).tokens
    began = time.perf_counter()
    with watched_attention(model) as watch:
        assert torch.equal(generate(model, ids, method, 5).tokens, expected)
    assert len(watch.seconds) == 2 * (1 + 4)  # layers, the prompt and four steps
    assert all(seconds > 0 for seconds in watch.seconds)
    assert sum(watch.seconds) < time.perf_counter() - began
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    count = len(watch.seconds)
    evaluate(model, ids, method)
    assert len(watch.seconds) == count


def test_a_watch_ends_with_an_error_too():
    model, before = cached_model("llama"), dict(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(ZeroDivisionError), watched_attention(model):
        1 / 0  # noqa: B018
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    model.set_attn_implementation("eager")
    try:
        with pytest.raises(ValueError, match="attn_implementation='eager': allowed is one of"):
            watched_attention(model).__enter__()
    finally:
        model.set_attn_implementation("sdpa")
