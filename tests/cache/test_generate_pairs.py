"""Whatever `generate` of transformers is asked for: with room for all, our cache changes nothing.

Each case is a pair of calls, one with the stock cache and one with ours: the same tokens, scores
and logits within 1e-4, over what else was returned.
"""

import pytest
import torch
from reference import cached_model, tiny_ids, tiny_model

from lib import (
    H2O,
    TOVA,
    CompressedCache,
    FixSizeL2,
    KeyDiff,
    RecentOnly,
    SnapKV,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
)

NEW = 8
FAMILIES = ["neox_25", "llama", "llama_gqa", "qwen3", "mistral_sliding", "yarn"]
OPTIONS = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 0},
    "top k": {"do_sample": True, "top_k": 7, "temperature": 0.7},
    "top p": {"do_sample": True, "top_p": 0.8, "num_return_sequences": 2},
    "min p": {"do_sample": True, "min_p": 0.05},
    "typical": {"do_sample": True, "typical_p": 0.6},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "early beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    "no repeats": {"no_repeat_ngram_size": 2},
    "repetition": {"repetition_penalty": 1.4},
    "at least": {"min_new_tokens": 5, "eos_token_id": 7},
    "until": {"eos_token_id": [3, 7, 11]},
    "bad words": {"bad_words_ids": [[5], [9, 2]]},
    "suppressed": {"suppress_tokens": [1, 2, 3]},
    "biased": {"sequence_bias": {(4,): 3.0}},
    "forced": {"forced_eos_token_id": 6},
    "renormalised": {"renormalize_logits": True, "do_sample": True},
    "hidden states": {"output_hidden_states": True},
    "whole prompt's logits": {"output_logits": True},
}
LENGTHS = {"one": (9,), "alike": (9, 9), "padded": (9, 4)}
METHODS = {
    "streaming": StreamingLLM(3, 27),
    "recent_only": RecentOnly(30),
    "l2": FixSizeL2(30),
    "keydiff": KeyDiff(30),
    "tova": TOVA(30),
    "h2o": H2O(30),
    "snapkv": SnapKV(30, window_size=8),
}


def batch(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Prompts of these lengths, padded on the left."""
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), []
    for row, length in enumerate(lengths):
        ids[row, -length:] = tiny_ids(length, seed=row)
        mask.append([0] * (max(lengths) - length) + [1] * length)
    return {"input_ids": ids, "attention_mask": torch.tensor(mask)}


def generated(model, prompts: dict[str, torch.Tensor], **options):
    """All that `generate` returns, drawn with the same seed."""
    torch.manual_seed(3)
    more = {"max_new_tokens": NEW, "pad_token_id": 0, "output_scores": True}
    how = {"return_dict_in_generate": True, "do_sample": False} | more | options
    return model.generate(**prompts, **how)


def assert_same(found, expected, mask: torch.Tensor) -> None:
    """The same tokens, and whatever numbers came with them, but for the states of pads."""
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits", "sequences_scores", "hidden_states"):
        pair = found.get(name), expected.get(name)
        assert (pair[0] is None) == (pair[1] is None), name
        if pair[1] is None:
            continue
        ours, theirs = (list(flat(part)) for part in pair)
        for one, other in zip(ours, theirs, strict=True):
            if name == "hidden_states" and one.shape[1] == mask.shape[1]:
                one, other = one[mask == 1], other[mask == 1]
            assert torch.allclose(one, other, atol=1e-4, equal_nan=True), name


def flat(part):
    """The tensors in tuples of tuples."""
    if isinstance(part, torch.Tensor):
        yield part
        return
    for one in part:
        yield from flat(one)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_ours_beside_the_stock_cache(family, lengths, options):
    model, prompts = cached_model(family), batch(lengths)
    cache = CompressedCache(model, METHODS["streaming"], buffer=5 * (len(lengths) - 1))
    found = generated(model, prompts, past_key_values=cache, **options)
    assert_same(found, generated(model, prompts, **options), prompts["attention_mask"])


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_beside_the_stock_cache(family, method):
    model, prompts = cached_model(family), batch(LENGTHS["alike"])
    for options in OPTIONS.values():
        found = generated(model, prompts, past_key_values=CompressedCache(model, method), **options)
        assert_same(found, generated(model, prompts, **options), prompts["attention_mask"])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_enabled_beside_not_enabled(options):
    model = tiny_model("llama_gqa")
    for prompts in map(batch, LENGTHS.values()):
        expected = generated(model, prompts, **options)
        enable_streaming_llm(model, 3, 27)
        assert_same(generated(model, prompts, **options), expected, prompts["attention_mask"])
        disable_streaming_llm(model)
