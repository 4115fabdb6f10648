"""The methods as functions, on pairs and caches."""

import math

import pytest
import torch
from reference import cached_model, tiny_ids
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
)

from lib import (
    CompressedCache,
    FixSizeL2,
    L2Compress,
    RecentOnly,
    StreamingLLM,
    fix_size_l2_compress,
    get_compress_fn,
    l2_compress,
    list_methods,
    recent_only_compress,
    streaming_llm_compress,
)

# the key norms of two heads and ten tokens
NORMS = [[9, 3, 7, 1, 8, 2, 6, 4, 5, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three layers of (1, 2, 10, 4)."""
    generator = torch.Generator().manual_seed(0)
    direction, *values = torch.randn(4, 1, 2, 10, 4, generator=generator)
    keys = direction / direction.norm(dim=-1, keepdim=True) * torch.tensor(NORMS)[..., None]
    return [(keys, value) for value in values]


FUNCTIONS = [
    (streaming_llm_compress, {"start_size": 1, "recent_size": 2}, [[0, 8, 9], [0, 8, 9]], ()),
    (recent_only_compress, {"window_size": 2}, [[8, 9], [8, 9]], ()),
    (l2_compress, {"keep_ratio": 0.2, "prune_after": 5}, [[3, 5], [0, 1]], (0, 1)),
    (
        fix_size_l2_compress,
        {"fix_kv_size": 4, "keep_ratio": 0.5, "skip_layers": [2]},
        [[3, 5, 8, 9], [0, 1, 8, 9]],
        (2,),
    ),
]


@pytest.mark.parametrize(("function", "arguments", "kept", "skipped"), FUNCTIONS)
@pytest.mark.parametrize("kind", [list, tuple, DynamicCache])
def test_functions(kind, function, arguments, kept, skipped):
    given_pairs = kind(pairs())
    result = function(given_pairs, **arguments)
    assert type(result) is kind
    if kind is DynamicCache:
        assert result is given_pairs
        result = [(layer.keys, layer.values) for layer in result.layers]
    else:  # what was given is left alone
        assert all(key.shape[2] == 10 for key, _ in given_pairs)
    for layer, ((key, value), before) in enumerate(zip(result, pairs(), strict=True)):
        index = [range(10)] * 2 if layer in skipped else kept
        for now, then in ((key, before[0]), (value, before[1])):
            assert now.shape[2] == len(index[0])
            for head in range(2):
                assert torch.equal(now[0, head], then[0, head, list(index[head])])


def test_functions_leave_an_empty_cache_alone_and_refuse_anything_else():
    assert recent_only_compress([], 2) == []
    assert recent_only_compress(DynamicCache(), 2).get_seq_length() == 0
    with pytest.raises(TypeError, match="past_key_values is a Tensor: allowed are a list or tuple"):
        recent_only_compress(torch.zeros(1, 2, 10, 4), 2)


def filled(kind: str, model):
    """A cache of three tokens that the functions can't cut."""
    config, longer = model.config, {"max_cache_len": 12}
    cache = {
        "static": lambda: StaticCache(config=config, **longer),
        "sliding": lambda: DynamicCache(config=config),
        "compressed": lambda: CompressedCache(model, StreamingLLM(1, 6)),
        "both": lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
    }[kind]()
    if kind != "both":
        with torch.no_grad():
            model(tiny_ids(1, 3), past_key_values=cache)
    return cache


@pytest.mark.parametrize("function", [streaming_llm_compress, l2_compress, get_compress_fn("h2o")])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("static", "StaticCache"),
        ("sliding", "DynamicCache with a DynamicSlidingWindowLayer"),
        ("compressed", "CompressedCache"),
        ("both", "EncoderDecoderCache"),
    ],
)
def test_functions_refuse_caches_that_they_would_break(kind, told, function):
    cache = filled(kind, cached_model("mistral_sliding"))
    with pytest.raises(TypeError, match=f"past_key_values is a {told}: allowed are a list or tup"):
        function(cache)
    assert cache.get_seq_length() == (0 if kind == "both" else 3)


def test_a_cut_cache_goes_on():
    """The next step of the model sees what stayed, where it stood in the text."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    cache, position = DynamicCache(), torch.tensor([[29]])
    with torch.no_grad():
        model(ids[:, :29], past_key_values=cache)
        assert streaming_llm_compress(cache, 2, 6) is cache
        logits = model(ids[:, 29:], past_key_values=cache, position_ids=position).logits
        mask = torch.full((30, 30), -torch.inf, dtype=torch.float64).triu(1)
        mask[29, 2:23] = -torch.inf
        expected = model(ids, attention_mask=mask[None, None]).logits[:, 29:]
    assert (logits - expected).abs().max() < 1e-8


def test_methods_by_name():
    functions = {
        "streaming_llm": streaming_llm_compress,
        "recent_only": recent_only_compress,
        "l2_compress": l2_compress,
        "fix_size_l2": fix_size_l2_compress,
    }
    assert list_methods()[: len(functions)] == list(functions)
    assert {name: get_compress_fn(name) for name in functions} == functions
    with pytest.raises(
        ValueError, match=r"'no_such': allowed are \['streaming_llm', 'recent_only'"
    ):
        get_compress_fn("no_such")


@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        (StreamingLLM, {"start_size": -1}, "start_size=-1: allowed is an int >= 0"),
        (StreamingLLM, {"start_size": 4.0}, "start_size=4.0: allowed is an int >= 0"),
        (StreamingLLM, {"recent_size": 0}, "recent_size=0: allowed is an int >= 1"),
        (RecentOnly, {"window_size": 0}, "window_size=0: allowed is an int >= 1"),
        (RecentOnly, {"window_size": True}, "window_size=True: allowed is an int >= 1"),
        (
            L2Compress,
            {"keep_ratio": 0.0},
            "keep_ratio=0.0: allowed is a number from 0 to 1, above 0",
        ),
        (
            L2Compress,
            {"keep_ratio": 1.5},
            "keep_ratio=1.5: allowed is a number from 0 to 1, above 0",
        ),
        (
            L2Compress,
            {"keep_ratio": math.nan},
            "keep_ratio=nan: allowed is a number from 0 to 1, above 0",
        ),
        (L2Compress, {"prune_after": -1}, "prune_after=-1: allowed is an int >= 0"),
        (FixSizeL2, {"fix_kv_size": 0}, "fix_kv_size=0: allowed is an int >= 1"),
        (FixSizeL2, {"keep_ratio": -0.1}, "keep_ratio=-0.1: allowed is a number from 0 to 1"),
        (FixSizeL2, {"keep_ratio": 1.01}, "keep_ratio=1.01: allowed is a number from 0 to 1"),
        (FixSizeL2, {"strategy": "low"}, "strategy='low': allowed is one of ('keep_low', 'keep_h"),
    ],
)
def test_bad_parameters(method, arguments, told):
    function = get_compress_fn(method.name)
    for make in (method, lambda **kwargs: function(pairs(), **kwargs)):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            make(**arguments)
        assert told in str(refusal.value)
