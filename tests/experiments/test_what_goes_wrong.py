"""Each mistake equals a literal loop that makes just that mistake, and nothing else is wrong."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from reference import cached_model, distinct_ids, literal, nll_of, tiny_ids

from lib import FixSizeL2, L2Compress, StreamingLLM, evaluate
from lib.experiments.what_goes_wrong.cases import Case, cases
from lib.experiments.what_goes_wrong.literature import literature_table
from lib.experiments.what_goes_wrong.mistakes import (
    DenseInChunk,
    EagerEviction,
    HookInEveryLayer,
    LengthOfLayer0,
    Unsorted,
)
from lib.experiments.what_goes_wrong.runs import (
    Run,
    by_chunk,
    measure_cases,
    mistake_table,
    run,
    run_cases,
    told_apart,
)
from lib.results.save import readable

START, RECENT, LENGTH = 2, 6, 41
METHOD = StreamingLLM(START, RECENT)
CHUNKS = [1, 3, 8, 16, 40]


def cut(held: list[int]) -> list[int]:
    return held if len(held) <= START + RECENT else held[:START] + held[-RECENT:]


def chunks(size: int) -> list[range]:
    """The last token is only predicted, never fed."""
    return [range(i, min(i + size, LENGTH - 1)) for i in range(0, LENGTH - 1, size)]


def literal_nll(model, ids, seen: dict[int, list[int]]) -> torch.Tensor:
    """NLL where query t sees the tokens `seen[t]`, at their distances in the text."""
    seen = seen | {LENGTH - 1: [LENGTH - 1]}
    return nll_of(literal(model, ids, lambda t, *_: [(j, t - j) for j in seen[t]]), ids)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("size", CHUNKS)
def test_eager_eviction(family, size):
    held, seen = [], {}
    for chunk in chunks(size):
        held = cut(held + list(chunk))  # before attention
        seen |= {t: [j for j in held if j <= t] for t in chunk}
    model, ids = cached_model(family), tiny_ids(LENGTH)
    nll = run(model, ids, lambda: EagerEviction(model, METHOD), size).nll[0]
    assert (nll - literal_nll(model, ids, seen)).abs().max() < 1e-5


def test_eager_eviction_of_single_tokens_is_a_window_one_shorter():
    model, ids = cached_model("neox_25"), tiny_ids(LENGTH)
    nll = run(model, ids, lambda: EagerEviction(model, METHOD)).nll[0]
    shorter = evaluate(model, ids, StreamingLLM(START, RECENT - 1), positions="original").nll
    assert (nll - shorter).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("size", CHUNKS)
def test_dense_within_the_chunk(family, size):
    held, seen = [], {}
    for chunk in chunks(size):
        seen |= {t: held + list(range(chunk.start, t + 1)) for t in chunk}
        held = cut(held + list(chunk))  # after it
    model, ids = cached_model(family), tiny_ids(LENGTH)
    nll = run(model, ids, lambda: DenseInChunk(model, METHOD), size).nll[0]
    assert (nll - literal_nll(model, ids, seen)).abs().max() < 1e-5


SHARE = L2Compress(0.8, 0, ())


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("hooks", [True, False])
def test_a_share_is_kept(hooks, every):
    """After each layer's attention, or the last one's, every layer keeps 80%, the lowest norms."""
    model, ids = cached_model("neox_25"), distinct_ids(LENGTH)
    held, norms, cuts = {}, {}, np.zeros(2, int)

    def see(t, layer, head):
        held.setdefault((layer, head), []).append(t)
        return [(j, t - j) for j in held[layer, head]]

    def after(t, layer, keys, _):
        norms[layer] = keys.norm(dim=-1)
        if (t + 1) % every or not (hooks or layer == 1):
            return
        for (one, head), tokens in held.items():
            kept = math.ceil(0.8 * len(tokens) - 1e-9)
            cuts[one] += head == 0 and kept < len(tokens) and t < LENGTH - 1
            held[one, head] = sorted(tokens, key=lambda j: norms[one][j, head].item())[:kept]

    expected = nll_of(literal(model, ids, see, after), ids)
    mistake = HookInEveryLayer if hooks else DenseInChunk
    before = hooks_of(model)
    result = run(model, ids, lambda: mistake(model, SHARE, every))
    assert (result.nll[0] - expected).abs().max() < 1e-5
    assert result.cuts == cuts.max()
    assert result.compressions == (LENGTH - 1) // every * (2 if hooks else 1)
    assert hooks_of(model) == before
    if every == 1:
        assert result.held == 4  # 80% of 5, again and again


def test_chunks_are_the_rhythm_of_single_tokens():
    """Where a share is kept once in 3 tokens, chunks of 3 and our own cache give the same."""
    model, ids = cached_model("neox_25"), distinct_ids(LENGTH)
    single = run(model, ids, lambda: DenseInChunk(model, SHARE, 3))
    chunked = run(model, ids, lambda: DenseInChunk(model, SHARE, 3), 3)
    ours = evaluate(model, ids, SHARE, 3, positions="original").nll
    assert (single.nll - chunked.nll).abs().max() < 1e-5
    assert (single.nll - ours).abs().max() < 1e-5
    assert (single.held, single.compressions, single.cuts) == (
        (chunked.held, chunked.compressions, chunked.cuts)
    )


def hooks_of(model) -> dict[str, list]:
    return {name: list(module._forward_hooks) for name, module in model.named_modules() if name}


def test_hooks_with_a_fixed_size_change_nothing():
    model, ids = cached_model("llama"), tiny_ids(2, LENGTH)
    nll = run(model, ids, lambda: HookInEveryLayer(model, METHOD)).nll
    right = evaluate(model, ids, METHOD, positions="original").nll
    assert (nll - right).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 3])
def test_length_of_layer_0(size):
    """Layer 0 keeps 8 tokens, layer 1 all; both stand where layer 0's length says."""
    model, ids = cached_model("neox_25"), distinct_ids(LENGTH)
    held, starts = {}, {}

    def place(t):
        chunk = t - t % size
        starts.setdefault(chunk, len(held.get((0, 0), [])))
        return starts[chunk] + t % size

    places = {}

    def see(t, layer, head):
        places.setdefault(t, place(t))
        held.setdefault((layer, head), []).append(t)
        return [(j, places[t] - places[j]) for j in held[layer, head]]

    def after(t, layer, keys, _):
        if layer == 1 or (t + 1) % size:
            return
        for head in range(2):
            older, recent = held[layer, head][:-4], held[layer, head][-4:]
            older = sorted(older, key=lambda j: keys[j, head].norm().item())[:4]
            held[layer, head] = sorted(older) + recent

    expected = nll_of(literal(model, ids, see, after), ids)
    method = FixSizeL2(8, 0.5, skip_layers=(1,))
    wrong = run(model, ids, lambda: LengthOfLayer0(model, method), size)
    assert (wrong.nll[0] - expected).abs().max() < 1e-5
    assert max(places.values()) == 8 + size - 1  # it stood still
    assert wrong.held == (8 + LENGTH - 1) / 2


@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_unsorted(positions):
    """Kept tokens lie by norm, lowest first, so the last places are not the recent tokens."""
    model, ids = cached_model("neox_25"), distinct_ids(LENGTH)
    held, lost = {}, []

    def see(t, layer, head):
        tokens = held.setdefault((layer, head), [])
        tokens.append(t)
        lost.append(t - 3 not in tokens)  # it is one of the four recent ones
        if positions == "original":
            return [(j, t - j) for j in tokens]
        return [(j, len(tokens) - 1 - place) for place, j in enumerate(tokens)]

    def after(t, layer, keys, _):
        for head in range(2):
            tokens, norms = held[layer, head], keys[:, head].norm(dim=-1)
            if len(tokens) > 8:
                older = sorted(tokens[:-4], key=lambda j: norms[j].item())[:4]
                kept = older + tokens[-4:]
                held[layer, head] = sorted(kept, key=lambda j: norms[j].item())

    expected = nll_of(literal(model, ids, see, after), ids)
    method = Unsorted(FixSizeL2(8, 0.5, "keep_low", ()))
    nll = evaluate(model, ids, method, 1, positions).nll
    assert (nll - expected).abs().max() < 1e-5
    assert any(lost[4:])


def test_by_chunk():
    model, ids = cached_model("neox_25"), tiny_ids(2, LENGTH)
    table = by_chunk(model, ids, METHOD, [1, 5, 40], 10).set_index(["way", "chunk_size"])
    right, dense = (
        evaluate(model, ids, method, positions="original").nll[:, 10:].mean().exp().item()
        for method in (METHOD, None)
    )
    assert table.ppl["exact"].tolist() == pytest.approx([right] * 3, rel=1e-5)
    own = table.ppl["dense within the chunk"]
    assert own[1] == pytest.approx(right, rel=1e-5)
    assert own[40] == pytest.approx(dense, rel=1e-5)
    assert np.allclose(table.ratio, table.ppl / right, rtol=1e-5)


def test_the_table_of_mistakes():
    def one(nll, compressions, positions="original"):
        return Run(torch.tensor(nll), 8.0, compressions, 3, positions)

    wrong = one([[9.0, 2.0, 3.0], [9.0, 1.0, 2.0]], 7)
    right = one([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]], 5, "in_cache")
    speeds = pd.DataFrame(
        [
            (name, way, factor * speed)
            for speed in (1.0, 2.0, 3.0, 4.0, 5.0)
            for name, factor in (("it", 1), ("that", 10))
            for way in ("right", "wrong")
        ],
        columns=["mistake", "way", "tokens_per_s"],
    )
    speeds.loc[speeds.way == "right", "tokens_per_s"] += 100
    chosen = {name: Case(name.upper(), name * 2, None, None, 2) for name in ("that", "it")}
    table = mistake_table({"that": (right, wrong), "it": (wrong, right)}, speeds, chosen, 1)
    row, that = table.iloc[1], table.iloc[0]
    assert (row.mistake, row.difference, row.why, row.chunk_size) == ("it", "IT", "itit", 2)
    assert row.ppl == pytest.approx(math.exp(2))
    assert row.right_ppl == pytest.approx(math.exp(1.25))
    assert row.ratio == pytest.approx(math.exp(0.75))
    half = 12.7062 * 0.25  # Student's t, one degree of freedom; differences 1 and 0.5
    assert row.ratio_high == pytest.approx(math.exp(0.75 + half), rel=1e-4)
    assert (row.tokens_per_s_q1, row.tokens_per_s, row.tokens_per_s_q3) == (2, 3, 4)
    assert (that.tokens_per_s_q1, that.right_tokens_per_s_q3) == (20, 140)
    assert (row.n_repeats, row.n_texts, row.n_tokens) == (5, 2, 4)
    assert (row.compressions, row.right_compressions, row.cuts) == (7, 5, 3)
    assert (row.right_positions, that.right_positions) == ("in_cache", "original")


def test_the_reports_stand_beside_what_is_found():
    nll = torch.rand(6, 50, generator=torch.Generator().manual_seed(0)).double()
    noise = 0.01 * torch.rand(6, 50, generator=torch.Generator().manual_seed(1)).double()
    right = {"hooks, share kept": nll + 1, "cut before attention": nll}
    wrong = {"hooks, share kept": nll + math.log(30) + noise, "cut before attention": nll + noise}
    table = literature_table(wrong, right, nll)
    assert table.ratio.tolist() == pytest.approx([30 * 1.005, 1.005], rel=2e-3)
    assert table.verdict.tolist() == ["holds", "holds"]
    assert table["size"].tolist() == ["larger here", "smaller here"]
    assert readable(table).theirs.tolist() == ["+1,812%", "300 instead of 40 to 70"]


def test_verdicts():
    rows = {"a": (1.01, 1.5), "b": (0.5, 0.99), "c": (0.9, 1.1), "d": (1.00001, 1.00002)}
    table = pd.DataFrame(
        [(name, *interval) for name, interval in rows.items()],
        columns=["mistake", "ratio_low", "ratio_high"],
    )
    expected = {"worse": ["a"], "better": ["b"], "not told apart": ["c"], "equal": ["d"]}
    assert told_apart(table) == expected


def test_speeds_are_of_what_follows_a_full_cache(monkeypatch):
    """The clock counts the tokens that are fed, so that each way's speed is known beforehand."""
    fed, model = [0], cached_model("neox_25")
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(fed[-1] + kwargs["input_ids"].shape[1] ** 2),
        with_kwargs=True,
    )
    monkeypatch.setattr("lib.experiments.what_goes_wrong.runs.perf_counter", lambda: float(fed[-1]))
    chosen = {
        name: Case(
            "", "", *(partial(way, model, METHOD) for way in (DenseInChunk, EagerEviction)), n
        )
        for name, n in (("one", 1), ("five", 5), ("long", 64))
    }
    try:
        table = measure_cases(model, tiny_ids(LENGTH), chosen, 8, 2)
    finally:
        handle.remove()
    # a chunk of n tokens takes n * n ticks; of the long one 32 tokens of the text are left
    expected = [1, 1, 1 / 5, 1 / 5, 1 / 32, 1 / 32] * 2
    assert table.tokens_per_s.tolist() == pytest.approx(expected)
    assert table["repeat"].tolist() == [0] * 6 + [1] * 6
    assert table.mistake.tolist() == ["one", "one", "five", "five", "long", "long"] * 2
    assert table.way.tolist() == ["wrong", "right"] * 6


def test_every_case_runs_and_its_right_way_is_right():
    model, ids = cached_model("neox_25"), tiny_ids(2, LENGTH)
    chosen = cases(model, 12, 2, 6, 3)
    runs = run_cases(model, ids, ids, chosen)
    assert list(runs) == list(chosen)
    original = evaluate(model, ids, StreamingLLM(2, 10), positions="original").nll
    turned = evaluate(model, ids, StreamingLLM(2, 10)).nll
    share = evaluate(model, ids, SHARE, 3, positions="original").nll
    for name in ("cut before attention", "dense within the chunk", "hooks, fixed size"):
        assert (runs[name][1].nll - original).abs().max() < 1e-5
    for name in ("share at every token", "hooks, share kept"):
        assert (runs[name][1].nll - share).abs().max() < 1e-5
    assert (runs["keys not turned"][0].nll - original).abs().max() < 1e-5
    assert (runs["keys not turned"][1].nll - turned).abs().max() < 1e-5
    counts = {
        name: (wrong.compressions, right.compressions) for name, (wrong, right) in runs.items()
    }
    assert counts["share at every token"] == (LENGTH - 1, (LENGTH - 1) // 3)
    assert counts["hooks, share kept"] == ((LENGTH - 1) // 3 * 2, (LENGTH - 1) // 3)
    assert counts["hooks, fixed size"] == ((LENGTH - 1) * 2, LENGTH - 1)
    assert [right.positions for _, right in runs.values()] == ["original"] * 5 + [
        "in_cache",
        "original",
        "in_cache",
        "original",
    ]
