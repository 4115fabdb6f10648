"""Key norms and attention received, against plain loops."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from reference import FAMILIES, cached_model, project, rotate, tiny_ids
from scipy.stats import spearmanr

from lib import attention_maps
from lib.experiments.key_norms import (
    CachedKeys,
    attention_lost,
    by_norm,
    cached_keys,
    first_over_median,
    loss_curves,
    rank_correlation,
    two_sets,
    without_first,
)
from lib.experiments.key_norms_plots import attention_by_norm, head_map
from lib.plots import subplots

C, T = 7, 12


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_the_first_layer_by_hand(family):
    model, ids = cached_model(family), tiny_ids(3, T)
    config, layer = model.config, model.base_model.layers[0]
    found = cached_keys(model, ids, C)
    dims = config.rope_parameters.get("partial_rotary_factor", 1.0)
    for text, row in enumerate(ids):
        for place, x in enumerate(model.get_input_embeddings()(row)[:C]):
            for head, key in enumerate(project(layer, x, config)[1]):  # before rotation
                expected = math.sqrt(sum(float(number) ** 2 for number in key))
                assert found.norms[text, 0, head, place] == pytest.approx(expected)
                turned = rotate(key[None], [place], config).flatten().tolist()
                part = turned[: round(dims * len(turned))]
                expected = math.sqrt(sum(number**2 for number in part))
                assert found.rotated[text, 0, head, place] == pytest.approx(expected)
    assert found.turning < 1e-6
    total = found.rotated**2 + found.rest**2
    np.testing.assert_allclose(total, found.norms**2)
    assert (found.rest.max() < 1e-5) == (dims == 1)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_attention_received(family):
    model, ids = cached_model(family), tiny_ids(2, T)
    received = cached_keys(model, ids, C).received
    N, L, H, _ = received.shape
    for text in range(N):
        maps = attention_maps(model, ids[text])[:, 0]
        group = maps.shape[1] // H
        for layer, head in np.ndindex(L, H):
            heads = range(head * group, (head + 1) * group)
            sums = [
                sum(maps[layer, h, query, key].item() for h in heads for query in range(C, T))
                for key in range(C)
            ]
            expected = [x / sum(sums) for x in sums]
            assert received[text, layer, head].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_attention_is_restored():
    model = cached_model("neox_25")
    before = model.config._attn_implementation
    cached_keys(model, tiny_ids(1, T), C)
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="input_ids.shape"):
        cached_keys(model, tiny_ids(1, C), C)


def lost_by_hand(received: list[float], badness: list[float]) -> list[float]:
    left, lost = list(range(len(received))), []
    while left:
        worst = max(left, key=lambda key: (badness[key], key))  # of equal ones the newer
        left.remove(worst)
        lost.append(1 - sum(received[key] for key in left))
    return lost


@pytest.mark.parametrize("bos", [0, 9])
def test_two_sets_are_spread_alike_begin_alike_and_share_no_token(bos):
    ours, others = two_sets(torch.arange(100), (3, 7), (5, 11), bos)
    assert ours.shape == (3, 7)
    assert others.shape == (5, 11)
    assert ours[:, 1].tolist() == [1, 41, 81]  # strides of 20: the first, third and last of five
    assert others[:, 1].tolist() == [8, 28, 48, 68, 88]
    assert not set(ours[:, 1:].flatten().tolist()) & set(others[:, 1:].flatten().tolist())
    # where the text begins with the first token, so do all; else none is changed
    firsts = [0] * 5 if bos == 0 else [7, 27, 47, 67, 87]
    assert others[:, 0].tolist() == firsts
    assert ours[:, 0].tolist() == ([0] * 3 if bos == 0 else [0, 40, 80])
    with pytest.raises(ValueError, match="tokens=89"):
        two_sets(torch.arange(89), (3, 7), (5, 11), bos)


def test_a_legend_of_many_layers_names_some():
    for layers, named in ((6, range(6)), (30, range(0, 30, 4))):
        parts = np.random.default_rng(0).random((3, layers, 10))
        _, ax = subplots()
        attention_by_norm(ax, parts)
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        mean = ["mean of layers"] if layers == 30 else []
        assert texts == [f"layer {layer}" for layer in named] + mean
        assert len(ax.lines) == layers + len(mean) + 1


def random_keys(shape=(3, 2, 2, 11), seed=0) -> CachedKeys:
    rng = np.random.default_rng(seed)
    received = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    norms = rng.integers(1, 6, shape).astype(float)  # with ties
    return CachedKeys(norms, norms / 2, received, 0.0)


def test_attention_lost():
    keys = random_keys()
    curves = loss_curves(keys)
    for place in np.ndindex(keys.norms.shape[:-1]):
        received, norms = keys.received[place].tolist(), keys.norms[place].tolist()
        badness = {
            "keep_low": norms,
            "keep_high": [-norm for norm in norms],
            "ideal": [-share for share in received],
        }
        for name, bad in badness.items():
            expected = lost_by_hand(received, bad)
            assert curves[name][place].tolist() == pytest.approx(expected, abs=1e-12)
    for name in ("keep_low", "keep_high", "random"):
        assert (curves[name] >= curves["ideal"] - 1e-12).all()
        assert curves[name][..., -1] == pytest.approx(1)


def test_random_order_is_the_mean_of_many():
    keys, rng = random_keys((11,)), np.random.default_rng(1)
    many = np.mean([attention_lost(keys.received, rng.random(11)) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(many, loss_curves(keys)["random"], atol=0.01)


def test_without_first():
    keys = random_keys()
    rest = without_first(keys)
    assert rest.received.sum(-1) == pytest.approx(1)
    np.testing.assert_allclose(
        rest.received[..., 3] / rest.received[..., 5], keys.received[..., 4] / keys.received[..., 6]
    )
    assert np.array_equal(rest.norms, keys.norms[..., 1:])


def test_rank_correlation():
    keys = random_keys()
    found = rank_correlation(keys.norms, keys.received)
    for place in np.ndindex(found.shape):
        expected = spearmanr(keys.norms[place], keys.received[place]).statistic
        assert found[place] == pytest.approx(expected)


def test_by_norm_and_the_first_over_the_median():
    norms = np.array([[5.0, 1.0, 4.0, 2.0, 3.0, 6.0]])
    received = np.array([[0.3, 0.1, 0.2, 0.1, 0.1, 0.2]])
    keys = CachedKeys(norms, norms, received, 0.0)
    np.testing.assert_allclose(by_norm(keys, 3), [[0.6, 0.9, 1.5]])  # 6 times 0.1, 0.15, 0.25
    assert first_over_median(norms).tolist() == [5 / 3.5]


def test_a_head_map_marks_the_intervals_that_include_0():
    values = [(0, 0, 0.5, 0.1, 0.9), (0, 1, 0.2, -0.1, 0.5), (1, 0, -0.3, -0.7, 0.1)]
    values += [(1, 1, -0.6, -0.9, -0.3), (0, 2, 0.9, 0.8, 1.0), (1, 2, 0.0, -0.2, 0.2)]
    table = pd.DataFrame(values, columns=["layer", "head", "x", "x_low", "x_high"])
    fig, ax = subplots()
    head_map(ax, table, "x", ".1f", "", "")
    dots = ax.collections[-1].get_offsets()
    cells = {(math.floor(y), math.floor(x)) for x, y in dots.tolist()}  # (layer, head)
    assert cells == {(0, 1), (1, 0), (1, 2)}
    assert len(dots) == 3
    shown = [text.get_text() for text in ax.texts]
    assert shown == ["0.5", "0.2", "0.9", "-0.3", "-0.6", "0.0"]
