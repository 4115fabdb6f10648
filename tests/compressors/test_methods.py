"""The methods against their papers' rules, written out in `methods_reference`."""

import sys
from dataclasses import dataclass
from fractions import Fraction
from inspect import signature
from types import SimpleNamespace

import methods_reference
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from methods_reference import norm, per_head, pyramid_budgets, pyramid_budgets_within
from reference import cached_model, distinct_ids, literal_scattered, nll_of, tiny_ids
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

from lib import (
    H2O,
    H2OL2,
    TOVA,
    AdaptiveL2,
    Compressor,
    FixSizeL2,
    Held,
    KeyDiff,
    KVPress,
    LagKV,
    Pyramid,
    Random,
    SnapKV,
    StreamingLLM,
    evaluate,
    get_compress_fn,
    list_methods,
)
from lib.cache.attention import kv_lab_attention
from lib.compressors import METHODS, ROWS, method_table
from lib.compressors.kvpress import PRESSES
from lib.compressors.pyramid import layer_budgets
from lib.measure.rows import at_budget, rows_of

some_tests = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 1000)


def held(*shape: int, seed: int = 0, layer_idx: int = 0, num_layers: int = 4, dtype=torch.float64):
    """Random keys, values and scores; keys have a direction in common, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape[:3], generator=torch.Generator().manual_seed(seed + 1))
    keys, values, common = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (shape, shape, (*shape[:2], 1, shape[3]))
    )
    return Held((keys + common).to(dtype), values.to(dtype), layer_idx, num_layers, scores)


def kept(method, cache: Held) -> list:
    """What `method` keeps, as lists (B, H, n), ascending."""
    index = method.keep(cache)
    if index is None:
        index = torch.arange(cache.length)
    B, H = cache.keys.shape[:2]
    index = index.expand(B, H, -1)
    assert (index.diff(dim=-1) > 0).all()
    return index.tolist()


class Knorm:
    """A press with kvpress's signature."""

    def __init__(self, compression_ratio: float = 0.0):
        self.compression_ratio = compression_ratio

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert (hidden_states, attentions, kwargs) == (None, None, {})
        self.seen = (module, keys, values)
        return -keys.norm(dim=-1)


@pytest.fixture
def kvpress(monkeypatch):
    """A stand-in for the package."""
    presses = dict.fromkeys(PRESSES, Knorm)
    package = SimpleNamespace(ScorerPress=Knorm, BasePress=object, **presses)
    monkeypatch.setitem(sys.modules, "kvpress", package)
    return package


@some_tests
@given(length=st.integers(1, 40), recent=st.integers(0, 6), others=st.integers(1, 20), seed=seeds)
def test_keydiff(length, recent, others, seed):
    assume(length != 2)  # two keys are equally like their mean
    cache, budget = held(2, 2, length, 6, seed=seed), recent + others
    method = KeyDiff(budget, recent)
    if length <= budget:
        assert method.keep(cache) is None
        return
    assert kept(method, cache) == per_head(
        lambda k, v: methods_reference.keydiff(k, v, budget, recent), cache.keys, cache.values
    )


@some_tests
@given(
    start=st.integers(0, 4),
    lag=st.integers(2, 6),
    more=st.integers(0, 12),
    beyond=st.integers(0, 30),
    seed=seeds,
)
def test_lagkv(start, lag, more, beyond, seed):
    budget = start + 2 * lag + more
    cache = held(2, 2, budget + beyond, 5, seed=seed)
    cache.values[..., 0] = 1.0  # a channel that never varies
    method = LagKV(budget, start, lag)
    if not beyond:
        assert method.keep(cache) is None
        return
    assert kept(method, cache) == per_head(
        lambda k, v: methods_reference.lagkv(k, v, budget, start, lag), cache.keys, cache.values
    )


def test_lagkv_looks_at_values_too():
    cache = held(1, 1, 40, 6)
    other = Held(cache.keys, cache.values.flip(2), 0, 4)
    assert kept(LagKV(20, 2, 5), cache) != kept(LagKV(20, 2, 5), other)


@some_tests
@given(
    length=st.integers(1, 40),
    start=st.integers(0, 5),
    heavy=st.integers(0, 10),
    recent=st.integers(1, 10),
    seed=seeds,
)
def test_h2o_l2(length, start, heavy, recent, seed):
    cache, method = held(2, 2, length, 4, seed=seed), H2OL2(start, heavy, recent)
    assert method.budget == start + heavy + recent
    assert (method.keep(cache) is None) == (length <= method.budget)
    assert kept(method, cache) == per_head(
        lambda k, v: methods_reference.h2o_l2([norm(x) for x in k], start, heavy, recent),
        cache.keys,
        cache.values,
    )


@some_tests
@given(
    length=st.integers(1, 60),
    soft=st.integers(1, 20),
    between=st.integers(0, 30),
    percent=st.integers(1, 100),
    seed=seeds,
)
def test_adaptive_l2(length, soft, between, percent, seed):
    cache, hard = held(2, 2, length, 4, seed=seed), soft + between
    method = AdaptiveL2(soft, hard, percent / 100)
    if length <= soft:
        assert method.keep(cache) is None
    share = Fraction(percent, 100)
    assert kept(method, cache) == per_head(
        lambda k, v: methods_reference.adaptive_l2([norm(x) for x in k], soft, hard, share),
        cache.keys,
        cache.values,
    )


def test_adaptive_l2_comes_to_rest_above_the_soft_limit():
    model, method = cached_model("neox_25"), AdaptiveL2(20, 40, 0.25)
    lengths = [evaluate(model, tiny_ids(n), method, 1).cache_length for n in range(18, 61, 6)]
    assert lengths == [17, 23, 23, 23, 23, 23, 23, 23]  # the 24th would be one of 4 above
    assert evaluate(model, tiny_ids(60), method, 59).cache_length == 40


@pytest.mark.parametrize("budget", [256, 300, 512])
def test_adaptive_l2_adapts_when_cut_once_per_64_tokens(budget):
    method = AdaptiveL2.at_budget(budget)
    length, lengths = 0, []
    for _ in range(20):
        cut = method.keep(held(1, 1, length + 64, 2, num_layers=1))
        length = length + 64 if cut is None else cut.shape[-1]
        lengths.append(length)
    assert lengths[-1] == lengths[-2] < budget  # at rest below the hard limit
    assert 42 <= lengths[-1] - method.soft_limit <= 44
    assert len(set(lengths)) > budget // 64


def test_random_is_uniform():
    cache, counts = held(1, 2, 30, 4), torch.zeros(30)
    for seed in range(300):
        for row in kept(Random(15, 0.2, seed=seed), cache)[0]:
            counts[row] += 1
    assert counts[27:].tolist() == [600] * 3
    # 12 of 27 older tokens: 267 of 600 times, give or take 12
    assert (counts[:27] - 600 * 12 / 27).abs().max() < 5 * 12.2


@some_tests
@given(
    budget=st.integers(1, 600),
    layers=st.integers(2, 48),
    base=st.integers(1, 64),
    beta=st.integers(1, 40),
    seen=st.integers(1, 1500),
)
def test_pyramid_budgets(budget, layers, base, beta, seen):
    base = min(base, budget)
    budgets = layer_budgets(budget, layers, base, beta)
    assert sum(budgets) == budget * layers
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] >= base
    exact = pyramid_budgets(budget, layers, base, beta)
    assert all(
        abs(ours - theirs) <= Fraction(1, 2) + Fraction(1, 10**9)
        for ours, theirs in zip(budgets, exact, strict=True)
    )
    assert layer_budgets(budget, 1, base, beta) == [budget]
    capped = layer_budgets(budget, layers, base, beta, seen)
    assert sum(capped) == budget * layers
    assert capped[0] <= max(seen, budget)
    exact = pyramid_budgets_within(seen, budget, layers, base, beta)
    assert max(abs(x - y) for x, y in zip(capped, exact, strict=True)) <= Fraction(501, 1000)


def test_pyramid_of_a_prompt_shorter_than_its_first_budget():
    """150 tokens, 100 a layer: what the first can't hold the others have."""
    method = Pyramid.at_budget(100, 4, method=SnapKV, parameters={"window_size": 8})
    assert [method.layer_budget(i, 4) for i in range(4)] == [187, 129, 71, 13]
    assert [method.layer_budget(i, 4, 150) for i in range(4)] == [150, 117, 83, 50]
    assert [method.layer_budget(i, 4, 60) for i in range(4)] == [100] * 4
    norms = Pyramid(H2OL2, 100)
    lengths = [len(kept(norms, held(1, 2, 150, 4, layer_idx=i))[0][0]) for i in range(4)]
    assert lengths == [150, 117, 83, 50]


def test_all_layers_of_a_pyramid_have_one_window():
    each = Pyramid(SnapKV, 100), Pyramid.at_budget(100, method=SnapKV)
    for method in (*each, Pyramid(SnapKV, 100, parameters={"window_size": 8})):
        window = 8 if method not in each else 32
        assert {method.layer_queries(i, 4) for i in range(4)} == {window}
    assert each[0].base_size == 32
    assert Pyramid(SnapKV, 100, 20, parameters={"window_size": 8}).base_size == 20
    with pytest.raises(ValueError, match="budget=14: allowed is an int >= 16"):
        Pyramid(SnapKV, 40, 14, parameters={"window_size": 16})


@pytest.mark.parametrize(
    ("method", "parameters"),
    [(KeyDiff, {}), (LagKV, {}), (FixSizeL2, {"strategy": "keep_high"}), (StreamingLLM, {})],
)
def test_pyramid_gives_every_layer_its_budget(method, parameters):
    pyramid = Pyramid(method, 20, 8, 4, 2, (1,), 3, parameters)
    expected = {0: 29, 2: 23, 3: 17, 4: 11}  # 8 + 12 / 4 for the last, as far above for the first
    for layer in range(5):
        cache = held(2, 2, 50, 6, layer_idx=layer, num_layers=5)
        if layer == 1:
            assert pyramid.keep(cache) is None
            continue
        alone = method.at_budget(expected[layer], 2, (1,), 3, **parameters)
        assert kept(pyramid, cache) == kept(alone, cache)
        assert len(kept(pyramid, cache)[0][0]) == expected[layer]


def lowest_norms(method, layer_idx, num_layers, seen):
    """The rule of H2OL2 and AdaptiveL2 on norms, for the slow loop."""
    if isinstance(method, Pyramid):
        sizes = method.budget, num_layers, method.base_size, method.beta
        budgets = pyramid_budgets_within(seen, *sizes)
        method = H2OL2.at_budget(round(budgets[layer_idx]), method.start_size)
    if isinstance(method, H2OL2):
        return methods_reference.h2o_l2, (method.start_size, method.heavy_size, method.recent_size)
    share = Fraction(method.prune_share)
    return methods_reference.adaptive_l2, (method.soft_limit, method.hard_limit, share)


@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize(
    "method",
    [H2OL2(2, 4, 5), AdaptiveL2(8, 12, 0.25), Pyramid(H2OL2, 12, 6, 3, 2)],
    ids=lambda method: method.name,
)
def test_token_by_token(method, family, positions):
    model, ids = cached_model(family), distinct_ids(32, seed=4)
    asked = []

    def keep(norms, layer):
        asked.append(layer)  # of each head, token by token
        heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
        seen = -(-asked.count(layer) // heads)
        rule, arguments = lowest_norms(method, layer, 2, seen)
        return rule(norms, *arguments)

    result = evaluate(model, ids, method, 1, positions)
    expected = literal_scattered(model, ids, keep, positions)
    assert (result.nll - nll_of(expected, ids)).abs().max() < 5e-5


# H2O and the adaptive one cut to less than they hold, so that a tie would show
SCORING = [
    KeyDiff(90),
    LagKV(90, 4, 16),
    H2OL2(4, 50, 36),
    AdaptiveL2(60, 90, 0.5),
    KVPress(Knorm(), 90),
    Pyramid(KeyDiff, 90),
]


@pytest.mark.parametrize("method", SCORING, ids=lambda method: method.name)
def test_scores_of_bf16_are_float32(method):
    cache = held(2, 2, 200, 8, dtype=torch.bfloat16)
    wide = Held(cache.keys.double(), cache.values.double(), 0, 4)
    assert kept(method, cache) == kept(method, wide)
    assert kept(method, cache) == kept(method, cache)


def test_kvpress_takes_what_the_press_scores_highest():
    press = Knorm(0.7)
    method = KVPress(press, 5, (1,))
    cache = held(2, 3, 12, 4, layer_idx=2, dtype=torch.bfloat16)
    lowest = cache.keys.double().norm(dim=-1).argsort(dim=-1)[..., :5].sort(dim=-1).values
    assert kept(method, cache) == lowest.tolist()
    assert method.keep(held(2, 3, 5, 4)) is None
    assert method.keep(held(2, 3, 12, 4, layer_idx=1)) is None
    assert press.compression_ratio == 0.7
    assert not hasattr(press, "seen")


def test_kvpress_tells_the_press_what_kvpress_would():
    class Noting(Knorm):
        noted = []

        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            self.noted.append((module, keys, values, self.compression_ratio))
            return super().score(module, hidden_states, keys, values, attentions, kwargs)

    for length in range(6, 200, 7):
        cache = held(1, 2, length, 4, layer_idx=3, dtype=torch.bfloat16)
        KVPress(Noting(), 5).keep(cache)
        module, keys, values, ratio = Noting.noted[-1]
        assert (module.layer_idx, module.head_dim) == (3, 4)
        assert torch.equal(keys, cache.keys.float())
        assert torch.equal(values, cache.values.float())
        assert 0 <= ratio < 1
        assert int(length * (1 - ratio)) == 5  # how kvpress counts


def test_kvpress_by_name(kvpress, monkeypatch):
    assert isinstance(KVPress("KnormPress").press, Knorm)
    for name in ("BasePress", "NoPress"):
        with pytest.raises(ValueError, match=f"press='{name}': allowed is the name of a ScorerPr"):
            KVPress(name)
    monkeypatch.setitem(sys.modules, "kvpress", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"the extra kv-lab\[kvpress\]"):
        KVPress("KnormPress")


def test_attention_can_be_called_by_position_as_kvpress_does():
    ours, theirs = (list(signature(f).parameters) for f in (kv_lab_attention, sdpa))
    assert ours[:7] == theirs[:7]


def test_kvpress_refuses_a_press_that_needs_more():
    class Needy(Knorm):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return hidden_states.norm(dim=-1)

    class Flat(Knorm):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return keys.norm(dim=-1).mean(dim=1)

    with pytest.raises(ValueError, match="press=.*allowed is a press that scores by keys and val"):
        KVPress(Needy(), 5).keep(held(1, 2, 9, 4))
    with pytest.raises(ValueError, match=r"scores.shape=\(1, 9\): allowed is \(1, 2, 9\)"):
        KVPress(Flat(), 5).keep(held(1, 2, 9, 4))


@pytest.mark.usefixtures("kvpress")
@pytest.mark.parametrize("group", ROWS)
def test_at_budget(group):
    method = at_budget(group, 20, 2, [1], 3)
    assert method.name in list_methods()
    assert type(method) is METHODS[method.name]
    assert method.paper
    counts = [len(kept(method, held(1, 2, n, 4, num_layers=1))[0][0]) for n in (20, 21, 27, 120)]
    # a ratio is one of what is held: 80% is within the budget for steps of up to a quarter of it
    ratios = {
        "l2_ratio_1.0": [20, 21, 27, 120],
        "l2_ratio_0.8": [20, 17, 22, 96],
        "l2_ratio_0.5": [20, 11, 14, 60],
    }
    adaptive = {"adaptive_l2": [17, 18, 20, 20]}  # 60% of what is beyond 15
    assert counts == (ratios | adaptive).get(group, [20] * 4)
    assert method.budget == (None if group in ratios else 20)
    if method.window is None:
        assert method.keep(held(1, 2, 50, 4, layer_idx=1)) is None
    for budget in (2, 1, 0, -3, 2.5, None):
        with pytest.raises(ValueError, match=f"budget={budget}: allowed is an int >="):
            METHODS[method.name].at_budget(budget, 2)
    with pytest.raises(ValueError, match="start_size=-1: allowed is an int >= 0"):
        METHODS[method.name].at_budget(20, -1)


@dataclass
class First(Compressor):
    """Keep the first `budget` tokens."""

    name, paper = "first", "none"
    budget: int = 9

    def choose(self, held):
        return torch.arange(self.budget)


@dataclass
class FirstOfSome(First):
    """With all parameters that `at_budget` knows, and one of its own."""

    start_size: int = 1
    skip_layers: tuple[int, ...] = ()
    seed: int = 0
    own: str = "x"


def test_a_rule_is_all_that_a_method_needs():
    assert First().keep(held(1, 2, 9, 4)) is None
    assert kept(First(), held(1, 2, 10, 4)) == [[[*range(9)]] * 2]
    assert First.at_budget(5, 2, [1], 3) == First(5)
    method = FirstOfSome.at_budget(5, 2, [1], 3, own="y")
    assert method == FirstOfSome(5, 2, (1,), 3, "y")
    assert method.keep(held(1, 2, 10, 4, layer_idx=1)) is None
    assert kept(method, held(1, 2, 10, 4, layer_idx=2)) == [[[*range(5)]] * 2]
    assert (method.layer_budget(2, 4), method.layer_queries(2, 4), method.window) == (5, 0, None)
    bad = {"budget": 0, "start_size": -1, "seed": -1, "skip_layers": 2}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"{name}={value}: allowed is "):
            FirstOfSome(**{name: value})
    for method in (First, FirstOfSome):  # whatever of these it takes
        with pytest.raises(ValueError, match="budget=4: allowed is an int >= 5"):
            method.at_budget(4, 4)
        with pytest.raises(ValueError, match="start_size=-1: allowed is an int >= 0"):
            method.at_budget(4, -1)


def test_a_method_without_a_rule_says_so():
    @dataclass
    class Ruleless(Compressor):
        name, paper = "ruleless", "none"
        budget: int = 9

    with pytest.raises(NotImplementedError, match="Ruleless has no rule: it needs `choose`"):
        Ruleless().keep(held(1, 2, 10, 4))


def test_only_what_the_package_imports_is_a_method():
    assert {First.name, FirstOfSome.name} & set(list_methods()) == set()
    classes = set(METHODS.values())
    assert {KeyDiff, Random, SnapKV} < classes
    assert all(method.__module__ == f"lib.compressors.{method.name}" for method in classes)


def test_method_table():
    table = method_table().set_index("method")
    assert table.index.tolist() == list_methods()
    assert table.rows["streaming_llm"] == "streaming, streaming_lazy"
    assert table.rows["tova"] == "tova"
    assert ", ".join(table.rows).split(", ") == list(ROWS)
    assert table.paper["tova"] == "Oren et al. 2024, arXiv:2401.06104"
    assert table.keeps["recent_only"].startswith("Keep the last `window_size` tokens (Longformer")
    assert table.keeps.str.endswith(".").all()  # a whole sentence in the docstring's first line
    assert table.keeps.is_unique


@pytest.mark.usefixtures("kvpress")
@pytest.mark.parametrize("budget", [6, 16])
def test_all_rows_stay_within_their_budget(budget):
    ids = tiny_ids(2, 45)
    rows = rows_of(list(ROWS), [budget], start_size=2, skip_layers=())
    for family in ("neox_25", "llama_gqa"):
        for name, method in rows.items():
            for chunk_size in (1, 4):
                result = evaluate(cached_model(family), ids, method, chunk_size)
                held_now, most = sum(result.cache_lengths) / 2, 44 if method is None else budget
                # a ratio of 0.8 needs steps of at most a quarter of the budget, one of 1 never cuts
                if not name.startswith("l2_ratio_1.0") and (
                    name != "l2_ratio_0.8_6" or chunk_size == 1
                ):
                    assert held_now <= most, name
                assert torch.isfinite(result.nll).all()


@pytest.mark.usefixtures("kvpress")
@pytest.mark.parametrize("name", list_methods())
def test_methods_as_functions(name):
    cache = held(2, 2, 600, 6, num_layers=1)
    pairs = [(cache.keys, cache.values)] * 3
    if METHODS[name]().layer_queries(0, 3):
        with pytest.raises(ValueError, match="scores=None: allowed is the attention that tokens"):
            get_compress_fn(name)(pairs)
        return
    result = get_compress_fn(name)(pairs)
    for layer, (keys, values) in enumerate(result):
        index = METHODS[name]().keep(Held(cache.keys, cache.values, layer, 3))
        index = torch.arange(600) if index is None else index
        index = index.expand(2, 2, -1)[..., None].expand(-1, -1, -1, 6)
        assert torch.equal(keys, cache.keys.gather(2, index))
        assert torch.equal(values, cache.values.gather(2, index))


@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        (KeyDiff, {"budget": 0}, "budget=0: allowed is an int >= 1"),
        (KeyDiff, {"budget": 5, "recent_size": 5}, "budget=5: allowed is an int >= 6"),
        (KeyDiff, {"recent_size": -1}, "recent_size=-1: allowed is an int >= 0"),
        (KeyDiff, {"skip_layers": 1}, "skip_layers=1: allowed is a list of layer indices"),
        (LagKV, {"lag_size": 1}, "lag_size=1: allowed is an int >= 2"),
        (LagKV, {"budget": 259}, "budget=259: allowed is an int >= 260"),
        (LagKV, {"start_size": 1.0}, "start_size=1.0: allowed is an int >= 0"),
        (LagKV, {"skip_layers": [-1]}, "skip_layers=-1: allowed is an int >= 0"),
        (H2OL2, {"heavy_size": -1}, "heavy_size=-1: allowed is an int >= 0"),
        (H2OL2, {"recent_size": 0}, "recent_size=0: allowed is an int >= 1"),
        (AdaptiveL2, {"soft_limit": 0}, "soft_limit=0: allowed is an int >= 1"),
        (AdaptiveL2, {"hard_limit": 383}, "hard_limit=383: allowed is an int >= 384"),
        (AdaptiveL2, {"prune_share": 0}, "prune_share=0: allowed is a number from 0 to 1, above 0"),
        (Random, {"budget": True}, "budget=True: allowed is an int >= 1"),
        (Random, {"keep_ratio": 2}, "keep_ratio=2: allowed is a number from 0 to 1"),
        (Random, {"seed": -1}, "seed=-1: allowed is an int >= 0"),
        (Pyramid, {"method": "keydiff"}, "method='keydiff': allowed is the class of another meth"),
        (Pyramid, {"method": Pyramid}, "allowed is the class of another method, such as KeyDiff"),
        (Pyramid, {"base_size": 0}, "base_size=0: allowed is an int >= 1"),
        (Pyramid, {"budget": 11, "base_size": 12}, "budget=11: allowed is an int >= 12"),
        (Pyramid, {"base_size": 4}, "budget=4: allowed is an int >= 5"),
        (Pyramid, {"seed": -1}, "seed=-1: allowed is an int >= 0"),
        (Pyramid, {"beta": 0.5}, "beta=0.5: allowed is a number >= 1"),
        (Pyramid, {"beta": float("nan")}, "beta=nan: allowed is a number >= 1"),
        (H2O, {"heavy_size": -1}, "heavy_size=-1: allowed is an int >= 0"),
        (H2O, {"recent_size": 0}, "recent_size=0: allowed is an int >= 1"),
        (TOVA, {"budget": 0}, "budget=0: allowed is an int >= 1"),
        (SnapKV, {"window_size": 0}, "window_size=0: allowed is an int >= 1"),
        (SnapKV, {"budget": 31}, "budget=31: allowed is an int >= 32"),
        (SnapKV, {"kernel_size": 4}, "kernel_size=4: allowed is an odd number"),
        (SnapKV, {"pooling": "min"}, "pooling='min': allowed is one of ('avg', 'max')"),
        (KVPress, {"press": Knorm(), "budget": 0}, "budget=0: allowed is an int >= 1"),
        (KVPress, {"press": object}, "allowed is a ScorerPress or the name of one"),
    ],
)
def test_bad_parameters(method, arguments, told):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        method(**arguments)
    assert told in str(refusal.value)
