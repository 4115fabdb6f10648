"""Following a stream and measuring its pace: the numbers are those of the tokens' own NLL."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import StreamingLLM, evaluate
from lib.experiments.million_tokens import follow_stream, pace
from lib.measure.limits import evaluation_flops
from lib.measure.stats import mean_ci


@pytest.fixture(scope="module")
def model():
    return cached_model("neox_25")


def test_a_stream_in_parts(model):
    ids, method = tiny_ids(100), StreamingLLM(2, 6)
    nll = evaluate(model, ids, method, chunk_size=1).nll.double()
    table = follow_stream(model, ids, method, chunk_size=7, parts=4)
    # 15 chunks of 7: the parts end with chunks 4, 8, 11 and 15, which is the last and shorter
    assert table.position.tolist() == [28, 56, 77, 99]
    for low, high, row in zip([0, 28, 56, 77], table.position, table.itertuples(), strict=True):
        assert row.ppl == pytest.approx(nll[low:high].mean().exp().item(), rel=1e-5)
        assert row.ppl_low < row.ppl < row.ppl_high
        assert row.n == 16
        assert row.running_ppl == pytest.approx(nll[:high].mean().exp().item(), rel=1e-5)
    # 22 tokens are six pairs and ten single ones
    parts = [*nll[77:89].view(6, 2).mean(1), *nll[89:99]]
    expected = mean_ci([float(x) for x in parts])[1:]
    assert table.iloc[3][["ppl_low", "ppl_high"]].tolist() == pytest.approx(
        np.exp(expected), rel=1e-5
    )
    assert table.cache_mib.nunique() == 1  # preallocated
    assert (table[["resident_mib", "tokens_per_s"]] > 0).all().all()


def test_a_part_needs_a_chunk(model):
    with pytest.raises(ValueError, match="parts=9: allowed is at most the number of chunks, 8"):
        follow_stream(model, tiny_ids(80), StreamingLLM(2, 6), chunk_size=10, parts=9)


def test_the_pace_is_of_the_same_numbers(model):
    ids, method = tiny_ids(90), StreamingLLM(2, 6)
    runs = pace(model, ids, method, [30, 1], repeats=2, loop_tokens=20)
    assert runs.chunk_size.tolist() == [30, 1, 30, 1]
    assert runs.max_difference.max() < 1e-4
    tokens = np.array([89, 20, 89, 20])
    flops = [evaluation_flops(model, n + 1, 8) for n in tokens]
    assert (runs.flop_per_s / runs.tokens_per_s).tolist() == pytest.approx(list(flops / tokens))


def test_the_pace_shows_a_difference(model, monkeypatch):
    def off(model, ids, method, chunk_size):
        result = evaluate(model, ids, method, chunk_size)
        nll = result.nll.clone()
        nll[3] += 0.5 * (chunk_size == 1)
        return replace(result, nll=nll)

    monkeypatch.setattr("lib.experiments.million_tokens.evaluate", off)
    runs = pace(model, tiny_ids(40), StreamingLLM(2, 6), [8, 1], repeats=1, loop_tokens=10)
    differences = runs.set_index("chunk_size").max_difference
    assert torch.isclose(torch.tensor(differences[1]).float(), torch.tensor(0.5), atol=1e-4)
