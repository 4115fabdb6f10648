"""The rows of a comparison: their methods, and how each is fed and cut."""

import pytest
import yaml
from reference import cached_model, tiny_ids

from lib import FixSizeL2, L2Compress, RecentOnly, StreamingLLM, evaluate
from lib.compressors import ROWS
from lib.measure.rows import at_budget, buffers_of, feeding_of, keeps_budget, rows_of
from lib.paths import NOTEBOOKS
from lib.run import params


def test_at_budget():
    assert at_budget("recent_only", 64) == RecentOnly(64)
    assert at_budget("streaming", 64) == at_budget("streaming_lazy", 64) == StreamingLLM(4, 60)
    assert at_budget("streaming", 64, start_size=0) == StreamingLLM(0, 64)
    for ratio in (1.0, 0.8, 0.5):
        method = at_budget(f"l2_ratio_{ratio}", 64, skip_layers=[0])
        assert method == L2Compress(ratio, 64, (0,))
    for group, strategy in (("low", "keep_low"), ("high", "keep_high"), ("random", "random")):
        method = at_budget(f"fix_l2_{group}", 64, skip_layers=(1,), seed=3)
        assert method == FixSizeL2(64, 0.2, strategy, (1,), 3)
    with pytest.raises(ValueError, match="method='no_such': allowed is one of"):
        at_budget("no_such", 64)
    with pytest.raises(ValueError, match="budget=4: allowed is an int >= 5"):
        at_budget("recent_only", 4)


def test_what_keeps_no_budget():
    rows = rows_of([name for name in ROWS if not name.startswith("kvpress")], [64])
    assert [name for name, x in rows.items() if not keeps_budget(x)] == [
        "baseline",
        "l2_ratio_1.0_64",
    ]
    model, ids = cached_model("neox_25"), tiny_ids(1, 300)
    for name, method in rows.items():
        lengths = evaluate(model, ids, method, chunk_size=16).cache_lengths
        assert (sum(lengths) / 2 <= 64) == keeps_budget(method), name


FILE = """
04_method_comparison:
  methods: [streaming, streaming_64, fix_l2_high_24, l2_ratio_0.5, recent_only_64]
  budgets: [16, 32]
  start_size: 2
  include_baseline: {baseline}
  include_recent_only: {recent_only}
  num_samples: 2
  max_tokens: 4096
  skip_layers: [1]
  seed: 5
"""


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("recent_only", [True, False])
def test_rows_from_yaml(baseline, recent_only):
    content = yaml.safe_load(FILE.format(baseline=baseline, recent_only=recent_only))
    contract = params.read_contract(NOTEBOOKS / "04_method_comparison.ipynb")
    given = params.check(contract, params.section(content, "04_method_comparison"))
    assert (given.pop("num_samples"), given.pop("max_tokens")) == (2, 4096)
    rows = rows_of(**given)
    expected = {"baseline": None} if baseline else {}
    if recent_only:
        expected |= {"recent_only_16": RecentOnly(16), "recent_only_32": RecentOnly(32)}
    expected |= {f"streaming_{n}": StreamingLLM(2, n - 2) for n in (16, 32, 64)}
    expected["fix_l2_high_24"] = FixSizeL2(24, 0.2, "keep_high", (1,), 5)
    expected |= {f"l2_ratio_0.5_{n}": L2Compress(0.5, n, (1,)) for n in (16, 32)}
    expected["recent_only_64"] = RecentOnly(64)
    assert rows == expected
    assert list(rows) == list(expected)


def test_wrong_rows_are_refused():
    for name in ("streamin", "streamin_16", "streaming_", "_16"):
        with pytest.raises(ValueError, match="method='.*': allowed is one of .'streaming'"):
            rows_of([name], [16])
    with pytest.raises(ValueError, match="budget=3: allowed is an int >= 5"):
        rows_of(["streaming_3"], [16])
    with pytest.raises(ValueError, match=r"methods=\[\]: allowed is at least one of"):
        rows_of([], [16], include_baseline=False, include_recent_only=False)


def test_buffers():
    rows = rows_of(["streaming", "streaming_lazy", "tova", "keydiff", "l2_ratio_0.8"], [16])
    assert buffers_of(rows, 8) == {
        "baseline": 0,
        "recent_only_16": 0,
        "streaming_16": 0,
        "streaming_lazy_16": 7,
        "tova_16": 7,
        "keydiff_16": 7,
        "l2_ratio_0.8_16": 0,
    }
    # what does not depend on the chunk comes in large ones, others are cut at a chunk's end
    feeding = {name: tuple(given.values()) for name, given in feeding_of(rows, 8).items()}
    assert feeding == {
        "baseline": (512, 0),
        "recent_only_16": (512, 0),
        "streaming_16": (512, 0),
        "streaming_lazy_16": (512, 7),
        "tova_16": (8, 0),
        "keydiff_16": (8, 0),
        "l2_ratio_0.8_16": (8, 0),
    }
