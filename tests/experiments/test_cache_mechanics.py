"""What the cache is seen to do equals a plain simulation of what it should."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from methods_reference import heavy_hitters, tova
from reference import (
    cached_model,
    distinct_ids,
    literal,
    literal_attended,
    own_generate,
    tiny_ids,
    tiny_model,
    windows,
)

from lib import H2O, TOVA, CompressedCache, FixSizeL2, LagKV, StreamingLLM
from lib.experiments import cache_mechanics as mechanics
from lib.experiments import cache_mechanics_plots as plots
from lib.experiments.cache_mechanics import (
    MarkedCache,
    compare_loops,
    follow_tokens,
    run_generate,
    trace,
    trace_table,
)
from lib.names import display_name

LENGTH = 40
METHOD = StreamingLLM(3, 7)


def picture(seen) -> np.ndarray:
    """(T, T): 1 where query t sees token j."""
    image = np.zeros((len(seen), len(seen)))
    for t, row in enumerate(seen):
        image[t, [j for j, _ in row]] = 1
    return image


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("buffer", [0, 5])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_the_picture_is_a_simulated_window(family, buffer, positions):
    followed = follow_tokens(cached_model(family), tiny_ids(LENGTH), METHOD, buffer, positions)
    expected = windows(LENGTH, 3, 7, positions, buffer)
    assert (followed.seen == picture(expected)).all()
    for tokens, distances in zip(followed.tokens, followed.distances, strict=True):
        for head in range(len(tokens)):
            found = zip(tokens[head].tolist(), distances[head].tolist(), strict=True)
            assert sorted(found) == sorted(expected[-1])


def test_the_picture_in_bfloat16():
    model, length = tiny_model("neox_50", torch.bfloat16), 300
    followed = follow_tokens(model, tiny_ids(length), METHOD, 5)
    expected = windows(length, 3, 7, buffer=5)
    assert (followed.seen == picture(expected)).all()
    found = zip(followed.tokens[1][0].tolist(), followed.distances[1][0].tolist(), strict=True)
    assert sorted(found) == sorted(expected[-1])


@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_the_picture_of_a_norm_method_is_that_of_a_plain_loop(positions):
    """Every head keeps the last 4 tokens and, of the others, the 4 of lowest norm."""
    model, ids = cached_model("neox_25"), distinct_ids(24)
    image, held = np.zeros((24, 24)), {}

    def see(t, layer, head):
        tokens = held.setdefault((layer, head), [])
        tokens.append(t)
        image[t, tokens] += 1 / 4  # two layers of two heads
        if positions == "original":
            looks = [(j, t - j) for j in tokens]
        else:
            looks = [(j, len(tokens) - 1 - place) for place, j in enumerate(tokens)]
        last[layer, head] = looks
        return looks

    def after(t, layer, keys, _):
        for head in range(2):
            older, recent = held[layer, head][:-4], held[layer, head][-4:]
            older = sorted(older, key=lambda j: keys[j, head].norm().item())[:4]
            held[layer, head] = sorted(older) + recent

    last = {}
    literal(model, ids, see, after)
    followed = follow_tokens(model, ids, FixSizeL2(8, 0.5, skip_layers=()), positions=positions)
    assert np.allclose(followed.seen, image)
    assert set(np.unique(image[-1])) > {0, 1}  # the heads choose unlike each other
    for (layer, head), looks in last.items():
        tokens, distances = followed.tokens[layer][head], followed.distances[layer][head]
        assert list(zip(tokens.tolist(), distances.tolist(), strict=True)) == looks


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        (TOVA(8), lambda held, given: tova(held, given, 8)),
        (H2O(5, 3), lambda held, given: heavy_hitters(held, given, 5, 3)),
    ],
    ids=["tova", "h2o"],
)
def test_the_picture_of_a_method_that_scores_by_attention(method, keep):
    model, ids, image = cached_model("neox_25"), tiny_ids(24), np.zeros((24, 24))
    image[0, 0] = 1

    def noted(held, given, _):
        kept, step = keep(held, given), len(given[0])  # the next one
        for tokens in kept:
            if step < 24:
                image[step, [*tokens, step]] += 1 / 4  # two layers of two heads
        return kept

    literal_attended(model, ids, noted, range(24))
    assert np.allclose(follow_tokens(model, ids, method).seen, image)


def test_methods_that_look_at_values_are_refused():
    with pytest.raises(ValueError, match="values"):
        follow_tokens(cached_model("neox_25"), tiny_ids(8), LagKV())


def test_following_changes_nothing():
    model, ids = cached_model("neox_50"), tiny_ids(1, LENGTH)
    caches = (kind(model, METHOD, 5) for kind in (CompressedCache, MarkedCache))
    with torch.no_grad():
        one, other = (
            torch.cat([model(ids[:, t : t + 1], past_key_values=c).logits for t in range(LENGTH)])
            for c in caches
        )
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("buffer", [0, 5])
def test_the_trace_is_that_of_a_simulated_window(buffer):
    """Before query t the window holds all it sees but itself."""
    settings = {"baseline": (None, 0), "ours": (METHOD, buffer)}
    traced = trace(cached_model("neox_25"), tiny_ids(LENGTH), settings)
    held = [len(row) - 1 for row in windows(LENGTH, 3, 7, buffer=buffer)]
    ours, baseline = (traced[traced.method == name] for name in ("ours", "baseline"))
    assert ours.held.tolist() == held[1:]
    assert ours.evictions.tolist() == np.cumsum(np.diff(held) < 1).tolist()
    assert (ours.evicted == ours.step - ours.held).all()
    assert baseline.held.tolist() == list(range(1, LENGTH))
    assert not baseline.evictions.any()


def test_the_table_of_a_sawtooth():
    held, evictions = [1, 2, 3, 4, 2, 3, 4, 2], [0, 0, 0, 0, 1, 1, 1, 2]
    traced = pd.DataFrame({"method": "streaming_lazy", "step": range(1, 9), "held": held})
    traced = traced.assign(evictions=evictions, evicted=traced.step - traced.held)
    row = trace_table(traced, 2).iloc[0]
    assert (row.n_texts, row.n_steps, row.shortest, row.longest) == (1, 7, 2, 4)
    assert row.mean_held == pytest.approx(20 / 7)
    assert (row.evictions, row.evicted, row.tokens_per_eviction) == (2, 6, 3)


@pytest.mark.parametrize("buffer", [0, 5])
def test_lengths_and_evictions_under_generate(buffer):
    """After a prompt of 12 each forward pass adds a token; the last one chosen is not fed."""
    tokens, lengths, evictions = run_generate(
        cached_model("llama"), tiny_ids(12), METHOD, 20, buffer
    )
    held = [len(row) - 1 for row in windows(12 + 20, 3, 7, buffer=buffer)]
    assert len(tokens) == 20
    assert lengths == held[12:]
    assert evictions == (np.diff(held) < 1).sum()


def test_both_loops_agree():
    settings = {"baseline": (None, 0), "lazy": (METHOD, 5), "norms": (FixSizeL2(8), 0)}
    model, prompts = cached_model("neox_25"), tiny_ids(3, 15)
    table = compare_loops(model, prompts, settings, 20)
    assert table["same_tokens_%"].tolist() == [100, 100, 100]
    assert table.same_lengths.all()
    assert table.longest.tolist()[:2] == [34, 15]
    assert (table.evictions_manual == table.evictions_generate).all()
    # 34 tokens of each prompt are fed, the 16th, 22nd, 28th, 34th cut
    assert table.evictions_generate.tolist()[:2] == [0, 3 * 4]
    new = [
        torch.cat([own_generate(model, x, 20, cache(model))[0][0] for x in prompts])
        for cache in (lambda _: None, lambda model: CompressedCache(model, METHOD, 5))
    ]
    expected = [100, 100 * (new[0] == new[1]).double().mean().item()]
    assert table["as_baseline_%"].tolist()[:2] == pytest.approx(expected)


def test_loops_that_differ_are_told_apart(monkeypatch):
    """For one of two prompts a token, a length and the number of evictions are changed."""
    prompts, own = tiny_ids(2, 15), run_generate

    def wrong(model, ids, *args):
        tokens, lengths, evictions = own(model, ids, *args)
        if torch.equal(ids, prompts[0]):
            return tokens, lengths, evictions
        return tokens + (torch.arange(10) == 3), [*lengths[:-1], 7], evictions - 1

    monkeypatch.setattr(mechanics, "run_generate", wrong)
    row = compare_loops(cached_model("neox_25"), prompts, {"ours": (METHOD, 0)}, 10).iloc[0]
    assert row["same_tokens_%"] == pytest.approx(95)
    assert not row.same_lengths
    assert row.evictions_manual - row.evictions_generate == 1


def test_the_schematic_is_what_was_seen():
    """A square up to each query, pale where nothing is seen, of another colour for the sinks."""
    seen = {
        "baseline": windows(9, 0, 9),
        "recent_only": windows(9, 0, 4),
        "streaming": windows(9, 1, 3),
    }
    seen = {name: picture(rows) for name, rows in seen.items()}
    fig = plots.what_a_query_sees(seen, 1, 4)
    for ax, (name, image) in zip(fig.axes, seen.items(), strict=True):
        assert display_name(name) in (ax.get_title(), ax.get_title("left"))  # as the style has it
        squares = {square.get_xy()[::-1]: to_hex(square.get_facecolor()) for square in ax.patches}
        assert sorted(squares) == [(t, j) for t in range(9) for j in range(t + 1)]
        for (t, j), color in squares.items():
            own = plots.NAVY if j == t else plots.BLUE
            own = plots.ORANGE if name == "streaming" and j == 0 < t else own
            assert color == (own if image[t, j] else plots.PALE).lower()
