"""Which tokens every method keeps."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import cached_model, tiny_ids

from lib import FixSizeL2, Held, L2Compress, Random, RecentOnly, StreamingLLM
from lib.cache.compressed import CompressedCache

some_tests = settings(max_examples=60, deadline=None)
# one batch, two heads, ten tokens; the norms are written out
NORMS = [[9, 3, 7, 1, 8, 2, 6, 4, 5, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


def keys_of(norms) -> torch.Tensor:
    """Keys (1, H, T, 4) with these norms (H, T), each in a direction of its own."""
    norms = torch.tensor(norms, dtype=torch.float32)
    direction = torch.randn(*norms.shape, 4, generator=torch.Generator().manual_seed(0))
    return (direction / direction.norm(dim=-1, keepdim=True) * norms[..., None])[None]


def held(keys: torch.Tensor, layer_idx: int = 0) -> Held:
    return Held(keys, keys, layer_idx, num_layers=6)


def random_keys(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (StreamingLLM(2, 3), [0, 1, 7, 8, 9]),
        (StreamingLLM(0, 4), [6, 7, 8, 9]),
        (StreamingLLM(4, 5), [0, 1, 2, 3, 5, 6, 7, 8, 9]),
        (StreamingLLM(4, 6), None),
        (RecentOnly(1), [9]),
        (RecentOnly(4), [6, 7, 8, 9]),
        (RecentOnly(10), None),
        (L2Compress(0.5, 9, ()), [[[1, 3, 5, 7, 8], [0, 1, 2, 3, 4]]]),
        (L2Compress(0.21, 0, ()), [[[1, 3, 5], [0, 1, 2]]]),
        (L2Compress(0.5, 10, ()), None),
        (L2Compress(1.0, 0, ()), None),
        (L2Compress(0.5, 0, (0,)), None),
        (FixSizeL2(5, 0.4, "keep_low", ()), [[[1, 3, 5, 8, 9], [0, 1, 2, 8, 9]]]),
        (FixSizeL2(5, 0.4, "keep_high", ()), [[[0, 2, 4, 8, 9], [5, 6, 7, 8, 9]]]),
        (FixSizeL2(5, 0.5, "keep_low", ()), [[[1, 3, 5, 8, 9], [0, 1, 2, 8, 9]]]),
        (FixSizeL2(5, 0.59, "keep_low", ()), [[[1, 3, 5, 8, 9], [0, 1, 2, 8, 9]]]),
        (FixSizeL2(3, 0.0, "keep_low", ()), [[[1, 3, 5], [0, 1, 2]]]),
        (FixSizeL2(3, 0.0, "keep_high", ()), [[[0, 4, 9], [7, 8, 9]]]),
        (FixSizeL2(3, 1.0, "keep_low", ()), [[[7, 8, 9], [7, 8, 9]]]),
        (FixSizeL2(10, 0.5, "keep_low", ()), None),
        (FixSizeL2(5, 0.5, "keep_low", (0, 1)), None),
    ],
    ids=str,
)
def test_written_out(method, kept):
    index = method.keep(held(keys_of(NORMS)))
    assert (None if index is None else index.tolist()) == kept


lengths = st.integers(1, 40)


@some_tests
@given(length=lengths, start_size=st.integers(0, 6), recent_size=st.integers(1, 20))
def test_streaming_and_recent_only(length, start_size, recent_size):
    keys, budget = random_keys(2, 3, length, 4), start_size + recent_size
    last = list(range(max(0, length - recent_size), length))
    streaming = StreamingLLM(start_size, recent_size)
    recent = RecentOnly(recent_size)
    assert (streaming.budget, recent.budget) == (budget, recent_size)
    if length <= budget:
        assert streaming.keep(held(keys, 5)) is None
    else:
        assert streaming.keep(held(keys, 5)).tolist() == [*range(start_size), *last]
    if length <= recent_size:
        assert recent.keep(held(keys, 5)) is None
    else:
        assert recent.keep(held(keys, 5)).tolist() == last


def assert_ascending(index: torch.Tensor):
    assert (index.diff(dim=-1) > 0).all()  # so each is there once, too


@some_tests
@given(
    length=lengths,
    size=st.integers(1, 20),
    keep_ratio=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    strategy=st.sampled_from(["keep_low", "keep_high", "random"]),
    layer_idx=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_fix_size_l2(length, size, keep_ratio, strategy, layer_idx, seed):
    keys = random_keys(2, 3, length, 4, seed=seed)
    method = FixSizeL2(size, keep_ratio, strategy, skip_layers=(1,), seed=seed)
    index = method.keep(held(keys, layer_idx))
    if layer_idx == 1 or length <= size:
        assert index is None
        return
    assert index.shape == (2, 3, size)
    assert_ascending(index)
    recent = math.floor(keep_ratio * size)
    assert index[..., size - recent :].tolist() == [[[*range(length - recent, length)]] * 3] * 2
    if strategy == "random":
        assert torch.equal(index, method.keep(held(keys, layer_idx)))
        return
    for batch in range(2):  # every head by its own norms
        for head in range(3):
            norms = [math.hypot(*key) for key in keys[batch, head, : length - recent].tolist()]
            chosen = index[batch, head, : size - recent].tolist()
            order = sorted(range(len(norms)), key=norms.__getitem__)
            best = order if strategy == "keep_low" else order[::-1]
            assert chosen == sorted(best[: size - recent])


@some_tests
@given(
    length=lengths,
    prune_after=st.integers(0, 30),
    eighths=st.integers(1, 8),
    layer_idx=st.integers(0, 3),
)
def test_l2_compress(length, prune_after, eighths, layer_idx):
    keys = random_keys(2, 3, length, 4)
    index = L2Compress(eighths / 8, prune_after, skip_layers=(1,)).keep(held(keys, layer_idx))
    kept = -(-length * eighths // 8)  # rounded up
    if layer_idx == 1 or length <= prune_after or kept == length:
        assert index is None
        return
    assert index.shape == (2, 3, kept)
    assert_ascending(index)
    for batch in range(2):
        for head in range(3):
            norms = [math.hypot(*key) for key in keys[batch, head].tolist()]
            order = sorted(range(length), key=norms.__getitem__)
            assert index[batch, head].tolist() == sorted(order[:kept])


@pytest.mark.parametrize("method", [L2Compress(0.5, 0, ()), FixSizeL2(4, 0.0, skip_layers=())])
def test_norms_of_bf16_keys_are_float32(method):
    """Norms a little above 16, where bf16 has steps of 1/8; lowest where the last dim is 0."""
    last = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    keys = torch.tensor([[16.0, x] for x in last], dtype=torch.bfloat16)[None, None]
    assert len(keys.norm(dim=-1).unique()) == 1  # they tie in bf16
    assert method.keep(held(keys)).tolist() == [[[1, 3, 4, 6]]]


def test_of_equal_norms_the_older_stays():
    keys = torch.tensor([[2.0] * 40, [1.0, 2.0] * 20])[None, ..., None].expand(1, 2, 40, 4)
    for method, kept in (
        (L2Compress(0.5, 0, ()), [range(20), range(0, 40, 2)]),
        (FixSizeL2(20, 0.1, "keep_low", ()), [[*range(18), 38, 39], [*range(0, 36, 2), 38, 39]]),
        (FixSizeL2(20, 0.1, "keep_high", ()), [[*range(18), 38, 39], [*range(1, 36, 2), 38, 39]]),
    ):
        assert method.keep(held(keys)).tolist() == [[list(row) for row in kept]]


def test_random_depends_on_seed_row_layer_and_place():
    keys = random_keys(1, 2, 40, 4)
    methods = [FixSizeL2(20, 0.2, "random", (), seed) for seed in range(3)]
    kept = [method.keep(held(keys, layer)).tolist() for method in methods for layer in range(2)]
    kept.append(methods[0].keep(replace(held(keys), seen=41)).tolist())
    assert all(kept.count(index) == 1 for index in kept)
    batch = methods[0].keep(held(random_keys(3, 2, 40, 4, seed=1)))
    assert batch.tolist() == [kept[2 * row][0] for row in range(3)]  # row b: seed + b; not the keys
    torch.manual_seed(5)  # nor does anyone else's seed matter
    assert methods[0].keep(held(keys)).tolist() == kept[0]


@pytest.mark.parametrize("keep_ratio", [0.0, 0.29, 1.0])
def test_random_is_the_random_choice_of_fix_size_l2(keep_ratio):
    keys = random_keys(2, 3, 120, 4).bfloat16()
    for layer, seed in ((0, 0), (3, 7)):
        random = Random(100, keep_ratio, (1,), seed)
        other = FixSizeL2(100, keep_ratio, "random", (1,), seed)
        assert torch.equal(random.keep(held(keys, layer)), other.keep(held(keys, layer)))
    assert Random(100, skip_layers=(1,)).keep(held(keys, 1)) is None
    assert Random(120).keep(held(keys)) is None


def test_random_does_not_always_evict_the_same_place_of_a_stream():
    model = cached_model("neox_25")
    cache = CompressedCache(model, FixSizeL2(12, 0.25, "random", ()))
    places = []
    keep = cache.compressor.keep

    def noted(held):
        index = keep(held)
        if index is not None:
            places.extend(set(range(13)) - set(row) for row in index[0].tolist())
        return index

    cache.compressor.keep = noted
    for token in tiny_ids(1, 60).split(1, dim=1):
        model(input_ids=token, past_key_values=cache)
    evicted = [place for (place,) in places]
    assert len(evicted) == 48 * 2 * 2  # steps, layers, heads
    assert set(evicted) == set(range(10))  # the 3 recent ones stay
    assert max(evicted.count(place) for place in range(10)) < len(evicted) / 3
