"""Methods that score tokens by attention, against the papers' rules on explicit attention."""

import math
import weakref

import pytest
import torch
from methods_reference import heavy_hitters, snapkv, tova
from reference import cached_model, literal_attended, own_generate, tiny_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib import H2O, TOVA, CompressedCache, KeyDiff, Pyramid, SnapKV, evaluate, generate
from lib.cache.step import BLOCK, Step
from lib.measure.attention_maps import attention_maps
from lib.measure.breakdown import filled_cache

METHODS = [
    H2O(5, 6),
    H2O(11, 1),
    TOVA(9),
    SnapKV(12, 4, 3, "avg"),
    SnapKV(14, 6, 5, "max"),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
one_of_each = pytest.mark.parametrize("method", METHODS[::2], ids=lambda method: method.name)
families = pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])


def rule(method):
    """The paper's rule with the parameters of `method`: f(held, given, layer)."""
    if isinstance(method, H2O):
        return lambda held, given, _: heavy_hitters(
            held, given, method.heavy_size, method.recent_size
        )
    if isinstance(method, TOVA):
        return lambda held, given, _: tova(held, given, method.budget)
    more = (method.budget, method.window_size, method.kernel_size, method.pooling)
    return lambda held, given, _: snapkv(held, given, *more)


@torch.no_grad()
def feed(model, cache, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Logits (B, T, V) of feeding `ids` (B, T) in steps of `pieces` tokens."""
    return torch.cat(
        [model(x, past_key_values=cache).logits for x in ids.split(pieces, dim=1)], dim=1
    )


def assert_like_the_rule(model, ids, method, pieces, keep, positions="in_cache", **kwargs):
    cache = CompressedCache(model, method, positions=positions, **kwargs)
    logits = feed(model, cache, ids, pieces)
    ends = set((torch.tensor(pieces).cumsum(0) - 1).tolist())
    for row, text in enumerate(ids):
        expected, held = literal_attended(model, text, keep, ends, positions)
        assert (logits[row] - expected).abs().max() < 1e-4  # the models' angles are float32
        for number, layer in enumerate(cache.layers):
            if positions == "in_cache":  # where a token was first rotated is its index
                found = layer.source_position[row].tolist()
                assert found == [held[number, head] for head in range(len(found))]
            assert {layer.length} == {len(held[number, head]) for head in range(len(layer.keys[0]))}


@each_method
@families
@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize(
    "pieces",
    [[1] * 26, [20, *[1] * 8], [5] * 6, [10, 1, 17, 1, 1, 3], [90, 3, 1]],
    ids=["single", "prompt", "chunks", "mixed", "blocks"],
)
def test_the_papers_rules(method, family, positions, pieces):
    model, ids = cached_model(family), tiny_ids(2, sum(pieces), seed=5)
    assert_like_the_rule(model, ids, method, pieces, rule(method), positions)


@one_of_each
@pytest.mark.parametrize("budget", [7, 20])
def test_the_papers_rules_at_other_budgets(method, budget):
    method = type(method).at_budget(budget, start_size=2)
    assert method.budget == budget
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 32, seed=2)
    assert_like_the_rule(model, ids, method, [12, *[1] * 20], rule(method))


@one_of_each
def test_lazy(method):
    keep, most = rule(method), method.budget + 4

    def lazily(held, given, layer):
        return keep(held, given, layer) if len(held[0]) > most else held

    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30, seed=3)
    assert_like_the_rule(model, ids, method, [3, *[1] * 27], lazily, buffer=4)


@one_of_each
def test_skipped_layers_keep_everything(method):
    def keep(held, given, layer):
        return held if layer == 0 else rule(method)(held, given, layer)

    skipping = type(method)(**(vars(method) | {"skip_layers": [0]}))
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 24, seed=3)
    assert_like_the_rule(model, ids, skipping, [9, *[1] * 15], keep)
    cache = CompressedCache(model, skipping)
    feed(model, cache, ids, [24])
    assert cache.layers[0].attention is None


def test_pyramid_of_snapkv():
    method = Pyramid.at_budget(16, 2, method=SnapKV)
    budgets = [method.layer_budget(layer, 2) for layer in range(2)]
    assert budgets == [24, 8]
    assert [method.layer_queries(layer, 2) for layer in range(2)] == [8, 8]
    assert Pyramid(KeyDiff).layer_queries(0, 2) == 0

    def keep(held, given, layer):
        budget = method.layer_budget(layer, 2, len(given[0]))  # a row for every token so far
        return rule(SnapKV(budget, 8))(held, given, layer)

    model, ids = cached_model("neox_25"), tiny_ids(1, 30, seed=3)
    for prompt in (22, 20):
        pieces = [prompt, *[1] * (30 - prompt)]
        assert_like_the_rule(model, ids, method, pieces, keep)
    cache = CompressedCache(model, method)
    feed(model, cache, ids[:, :18], [18])
    assert cache.cached_lengths == [18, 14]


def test_a_lazy_pyramid():
    """A layer grows by `buffer` over what its budget is by then."""
    method = Pyramid.at_budget(16, 2, method=SnapKV, parameters={"window_size": 4})
    model, ids = cached_model("neox_25"), tiny_ids(1, 34, seed=3)
    cache, held = CompressedCache(model, method, buffer=5), [0, 0]
    for t, piece in enumerate(ids.split([18, *[1] * 16], dim=1)):
        feed(model, cache, piece, [piece.shape[1]])
        for layer in range(2):
            budget = method.layer_budget(layer, 2, 18 + t)
            held[layer] += piece.shape[1]
            held[layer] = budget if held[layer] > budget + 5 else held[layer]
        assert cache.cached_lengths == held


@families
@pytest.mark.parametrize("pieces", [[150], [70, 1, 60, 19], [1] * 40])
def test_what_tokens_receive_is_in_the_attention_maps(family, pieces):
    model, ids = cached_model(family), tiny_ids(2, sum(pieces))
    maps = torch.stack([m.double() for m in attention_maps(model, ids)])  # float32 of float64
    heads = model.config.num_attention_heads
    groups = heads // getattr(model.config, "num_key_value_heads", heads)
    maps = maps.unflatten(2, (-1, groups)).mean(3)  # (L, B, Hkv, T, T)
    for method, expected in (
        (H2O(500, 500), maps.sum(dim=3)),
        (TOVA(500), maps[:, :, :, -1]),
        (SnapKV(500, 16), maps[:, :, :, -16:].sum(dim=3)),
    ):
        cache = CompressedCache(model, method)
        feed(model, cache, ids, pieces)
        for layer, received in zip(cache.layers, expected, strict=True):
            assert layer.attention.shape[2:] == (len(ids[0]), min(method_columns(method), 16))
            assert (layer.attention.sum(dim=-1) - received).abs().max() < 1e-5


def method_columns(method) -> int:
    queries = method.layer_queries(0, 2)
    return 1 if queries == math.inf else queries


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@one_of_each
@families
def test_no_matrix_of_the_whole_prompt(method, family):
    model, heads = cached_model(family), 4  # or 2
    for length in (512, 2048):
        cache = CompressedCache(model, method)
        with Largest() as largest, torch.no_grad():
            model(tiny_ids(1, length), past_key_values=cache, logits_to_keep=1)
        # a block of weights, or the feed-forward layer's 48
        assert largest.elements <= heads * BLOCK * length < length * length * 4
        (blocks,) = cache.layers[0].step._blocks.values()  # of all layers
        assert {mask.shape[-2:] for *_, mask in blocks} == {(BLOCK, BLOCK)}
        assert len({id(mask) for *_, mask in blocks}) == 1
        assert cache.cached_lengths == [method.budget] * 2


def test_masks_of_a_prompt_are_freed_block_by_block():
    """Where a model's own window makes them unlike."""
    step, masks = Step(n=20 * BLOCK, seen=0, position=0), []
    window = 3 * BLOCK + 5
    for _, _, mask in step.blocks(20 * BLOCK, torch.device("cpu"), torch.float32, window):
        masks.append(weakref.ref(mask))
        del mask
        assert sum(one() is not None for one in masks) == 1
    assert len(masks) == 20


@one_of_each
@families
def test_generate_is_the_manual_loop(method, family):
    model, ids = cached_model(family), tiny_ids(2, 25)
    own, _ = own_generate(model, ids, 30, CompressedCache(model, method))
    assert torch.equal(generate(model, ids, method, max_new_tokens=30).tokens, own)
    # a short prompt, an eager model, and the model's own chunks
    eager = tiny_model(family, attn_implementation="eager")
    for prompt, chunk in ((ids[:, :3], {}), (ids, {"prefill_chunk_size": 7})):
        sdpa, _ = own_generate(model, prompt, 20, CompressedCache(model, method), **chunk)
        other, _ = own_generate(eager, prompt, 20, CompressedCache(eager, method), **chunk)
        assert torch.equal(sdpa, other)
    assert eager.config._attn_implementation == "eager"


@one_of_each
def test_beams_and_reset(method):
    model, ids = cached_model("llama_gqa"), tiny_ids(3, 40)
    cache, pieces = CompressedCache(model, method), [20, 1, 1]
    rows = torch.tensor([2, 0, 0])
    feed(model, cache, ids[:, :22], pieces)
    cache.reorder_cache(rows)
    found = feed(model, cache, ids[:, 22:], [1] * 18)
    straight = CompressedCache(model, method)
    feed(model, straight, ids[rows, :22], pieces)
    assert torch.equal(found, feed(model, straight, ids[:, 22:], [1] * 18))
    cache.reset()
    again = feed(model, cache, ids[:1], [30, *[1] * 10])
    new = CompressedCache(model, method)
    assert torch.equal(again, feed(model, new, ids[:1], [30, *[1] * 10]))
    own_generate(model, ids, 10, CompressedCache(model, method), num_beams=3)


@one_of_each
def test_16_bits_are_scored_in_32(method):
    model = cached_model("llama_gqa", torch.bfloat16)
    cache = CompressedCache(model, method)
    feed(model, cache, tiny_ids(1, 100), [90, 1, 1, 8])
    layer = cache.layers[1]
    assert layer.keys.dtype == torch.bfloat16
    assert layer.attention.dtype == torch.float32
    # a query gives 1 in all, to the tokens that stayed at most that
    assert (layer.attention >= 0).all()
    assert cache.nbytes > 2 * sum(x.keys.nbytes for x in cache.layers)


@one_of_each
def test_chunks_cut_once_each(method):
    model, ids = cached_model("neox_25"), tiny_ids(2, 61)
    cuts = []
    result = evaluate(model, ids, method, 10, after_chunk=lambda _, x: cuts.append(x.evictions))
    assert cuts == [number + (method.budget < 10) for number in range(6)]
    assert result.cache_lengths == [method.budget] * 2


def test_steps_without_scores_are_refused():
    model, ids = tiny_model("neox_25"), tiny_ids(1, 8)
    with pytest.raises(RuntimeError, match="needs masks, positions or scores that only the model"):
        model(ids, past_key_values=CompressedCache(model.config, TOVA(5)))
    # a model whose attention goes its own way says nothing
    cache, states = CompressedCache(model, TOVA(5)), torch.zeros(1, 2, 3, 16, dtype=torch.float64)
    cache.step(3)
    for layer in range(2):
        cache.update(states, states, layer)
    cache.step(3)
    with pytest.raises(RuntimeError, match="the model's attention did not say"):
        cache.update(states, states, 0)
    with pytest.raises(ValueError, match="method=TOVA.*allowed is one that does not look at att"):
        filled_cache(model, TOVA(5), 9)
