"""The explorer's grid holds what `evaluate` gives, and goes on where it was."""

import json
import math

import pytest

from lib import StreamingLLM, evaluate, load_model, load_tokens
from lib.measure.stats import log_edges, stretches
from lib.paths import ROOT

pytest.importorskip("bokeh", reason="the report's packages are an extra, .[report]")

from lib.report.explorer import explorer, read_grid
from lib.report.grid import DENSE, make_grid, setting


def test_a_setting_is_what_evaluate_gives(tmp_path):
    path = tmp_path / "grid.json"
    make_grid(path, "reference", "docs", 256, [0, 2], [32])
    grid = json.loads(path.read_text())
    assert list(grid["settings"]) == [DENSE, "0+32", "2+32"]
    model, tokenizer = load_model("reference")
    tokens = load_tokens("docs", tokenizer, 256)
    for name, compressor in ((DENSE, None), ("2+32", StreamingLLM(2, 32))):
        found = grid["settings"][name]
        nll = evaluate(model, tokens, compressor).nll
        ppl, low, high = found["ppl"]
        assert ppl == pytest.approx(math.exp(stretches(nll).mean().item()), rel=1e-4)
        assert low < ppl < high
        low, high = log_edges(16, 255)[-2:]
        last = stretches(nll[low:high]).mean().item()
        assert found["nll"][-1] == pytest.approx(last, rel=1e-4)
    assert grid["made"]["texts"][-1]["tokens"] == 256
    before = grid["settings"]["2+32"]
    grid["settings"]["2+32"] = before | {"ppl": [1, 1, 1]}  # to see that it isn't made anew
    path.write_text(json.dumps(grid))
    make_grid(path, "reference", "docs", 256, [0, 2], [32, 48])
    again = json.loads(path.read_text())["settings"]
    assert again["2+32"]["ppl"] == [1, 1, 1]
    assert list(again)[3:] == ["0+48", "2+48"]
    with pytest.raises(ValueError, match="another model, text or code"):
        make_grid(path, "reference", "docs", 128, [0], [32])
    shown = read_grid(path)
    assert (shown["sinks"], shown["windows"]) == ([0, 2], [32, 48])
    script, div = explorer({"reference": shown})
    assert "2+48" in script
    assert "http" not in script + div


def test_only_whole_rows_of_pairs_are_offered(tmp_path):
    path = tmp_path / "grid.json"
    about = {"model": "a", "text": "b", "tokens": 9, "position": [1]}
    settings = dict.fromkeys([DENSE, "0+8", "4+8", "0+16"], {})
    path.write_text(json.dumps({"about": about, "made": {}, "settings": settings}))
    grid = read_grid(path)
    assert (grid["sinks"], grid["windows"], grid["model"]) == ([0, 4], [8], "a")


@pytest.mark.parametrize("folder", ["results", "results/smollm2"])
def test_the_grids_that_are_there_are_whole(folder):
    grid = json.loads((ROOT / folder / "explorer_grid.json").read_text(encoding="utf-8"))
    read = read_grid(ROOT / folder / "explorer_grid.json")
    pairs = {setting(s, w) for s in read["sinks"] for w in read["windows"]}
    assert grid["settings"].keys() == {DENSE} | pairs
    assert len(read["sinks"]) >= 5
    assert len(read["windows"]) >= 10
