"""Sinks of texts begun in other ways, and their maps."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import load_tokenizer
from lib.experiments.attention_sinks import (
    other_starts,
    place_or_token,
    sink_table,
    sinks_by_layer,
)
from lib.experiments.attention_sinks_plots import map_panels, strength_map
from lib.measure.attention_maps import heads_with_sink
from lib.measure.stats import mean_ci, place_table, share_ci


@pytest.mark.parametrize(("count", "length"), [(1, 2), (3, 9), (16, 65)])
def test_other_starts_change_what_they_say_and_nothing_else(count, length):
    tokenizer = load_tokenizer("reference")
    special = tokenizer.bos_token_id
    texts = torch.randint(1, 4096, (count, length), generator=torch.Generator().manual_seed(1))
    texts[:, 0] = special
    begun = other_starts(texts, tokenizer, seed=3)
    assert {ids.shape for ids in begun.values()} == {(count, length - 1)}
    kept = {name: (ids == texts[:, :-1]) for name, ids in begun.items()}
    assert kept["text as it is"].all()
    assert kept["first token random"][:, 1:].all()
    assert kept["first token a newline"][:, 1:].all()
    assert kept["rest random"][:, 0].all()
    assert begun["first token cut off"].tolist() == texts[:, 1:].tolist()
    assert {tokenizer.decode([i]) for i in begun["first token a newline"][:, 0]} == {"\n"}
    assert not (begun["all random"] == special).any()
    assert not (begun["first token random"] == special).any()
    assert not (begun["rest random"][:, 1:] == special).any()
    again = other_starts(texts, tokenizer, seed=3)
    assert all(torch.equal(begun[name], again[name]) for name in begun)


def test_random_tokens_are_evenly_drawn_and_differ_by_seed():
    tokenizer = load_tokenizer("reference")
    texts = torch.zeros(64, 1025, dtype=torch.long)
    one, other = (other_starts(texts, tokenizer, seed)["all random"] for seed in (0, 1))
    assert (one == other).float().mean() < 0.01
    counts = torch.bincount(one.flatten(), minlength=4096)[1:].double()  # 16 of each expected
    assert counts.sum() == 64 * 1024
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.1)  # as of a Poisson law


@pytest.mark.parametrize(
    ("texts", "keys", "threshold"), [(2, 1, 0.3), (6, 4, 0.3), (5, 3, 0.7), (8, 2, 0.9)]
)
def test_sink_table_counts_heads(texts, keys, threshold):
    layers, heads = 3, 2
    strengths = np.random.default_rng(texts).random((2, texts, layers, heads, keys))
    table = sink_table(dict(zip(("a", "b"), strengths, strict=True)), threshold)
    assert table.text.tolist() == ["a", "b"]
    first_shares = None
    for row, strength in zip(table.to_dict("records"), strengths, strict=True):
        shares, means, strongest, elsewhere = [], [], [], 0
        for text in strength:
            alphas = [text[layer][head] for layer in range(layers) for head in range(heads)]
            shares.append(100 * sum(alpha[0] > threshold for alpha in alphas) / len(alphas))
            means.append(sum(alpha[0] for alpha in alphas) / len(alphas))
            strongest.append(max(alpha[0] for alpha in alphas))
            elsewhere += sum(any(a > threshold for a in alpha[1:]) for alpha in alphas)
        for name, short, values in (
            ("heads_%", "heads", shares),
            ("mean", "mean", means),
            ("strongest", "strongest", strongest),
        ):
            found = row[name], row[f"{short}_low"], row[f"{short}_high"]
            whole = 100 if name == "heads_%" else 1
            expected = [min(max(x, 0), whole) for x in mean_ci(values)]
            assert found == pytest.approx(expected)
        first_shares = first_shares or shares
        changes = [share - before for share, before in zip(shares, first_shares, strict=True)]
        found = row["change_%"], row["change_low"], row["change_high"]
        assert found == pytest.approx(mean_ci(changes), abs=1e-9)
        assert heads_with_sink(strength, threshold) == pytest.approx(np.array(shares) / 100)
        begun = sum(share > 0 for share in shares)
        found = [row[name] / 100 for name in ("texts_with_sink_%", "texts_low", "texts_high")]
        assert found == pytest.approx(share_ci(begun, texts))
        assert row["elsewhere_%"] == pytest.approx(100 * elsewhere / (texts * layers * heads))
        assert (row["n_texts"], row["n_heads"]) == (texts, layers * heads)


def test_sinks_by_layer_average_to_the_share_of_all_heads():
    strength = np.random.default_rng(0).random((6, 4, 5, 1))
    table = sinks_by_layer(strength[..., 0], 0.6)
    assert table.layer.tolist() == [0, 1, 2, 3]
    for row in table.to_dict("records"):
        shares = [
            100 * sum(alpha > 0.6 for alpha in text[row["layer"], :, 0]) / 5 for text in strength
        ]
        found = row["heads_%"], row["heads_low"], row["heads_high"]
        assert found == pytest.approx(np.clip(mean_ci(shares), 0, 100))
        assert (row["n_texts"], row["n_heads"]) == (6, 5)
    assert table["heads_%"].mean() == pytest.approx(100 * heads_with_sink(strength, 0.6).mean())


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((60, 40, 35, 31), "the sink is at the first place, whatever token stands there"),
        ((60, 40, 35, 29), "some first tokens make a sink"),
        ((60, 30, 0, 29), "the sink is this first token"),
        ((0, 0, 0, 0), "there is no sink"),
    ],
)
def test_what_the_sink_goes_with_is_read_off_the_data(shares, words):
    texts = ("text as it is", "first token random", "first token a newline", "first token cut off")
    assert place_or_token(pd.DataFrame({"text": texts, "heads_%": shares})) == words


@pytest.mark.parametrize(
    ("layers", "heads", "drawn", "numbers"),
    [(2, 3, (2, 3), 6), (30, 9, (6, 9), 0), (4, 32, (4, 9), 0)],
)
def test_large_models_show_some_maps_and_no_numbers(layers, heads, drawn, numbers):
    panels = map_panels(torch.rand(layers, heads, 8, 8), shown=4).axes
    assert len(panels) - 1 == drawn[0] * drawn[1]  # less the colour bar
    assert panels[-2].get_subplotspec().get_geometry()[:2] == drawn
    assert [ax.get_ylabel() for ax in panels if ax.get_ylabel().startswith("layer")][-1] == (
        f"layer {layers - 1}"
    )
    strength = np.random.default_rng(0).random((3, layers, heads))
    table = place_table({"sink_strength": strength}, ("layer", "head"))
    fig = strength_map(table, sinks_by_layer(strength), 0.3)
    assert len(fig.axes[0].texts) == numbers
    assert len(fig.axes[1].patches) == layers
