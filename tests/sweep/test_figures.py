"""04's figure out of a merged table."""

import importlib.util

import pandas as pd
import pytest

from lib.paths import ROOT
from lib.plots import use_style

spec = importlib.util.spec_from_file_location("figures", ROOT / "workflow" / "figures.py")
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)


def merged() -> pd.DataFrame:
    """Rows as `lib.sweep.collect` writes them: two models, two budgets, one run out of memory."""
    rows = []
    for model in ("small", "large"):
        for budget in (64, 128):
            about = {"run": f"{model}{budget}", "memory_gb": 1.0, "model": model, "budgets": budget}
            if (model, budget) == ("large", 128):
                rows.append(about | {"status": "oom"})
                continue
            for method, change in (("baseline", 0.0), (f"streaming_{budget}", 10.0 * len(model))):
                ends = {"ppl_change_low": change - 1, "ppl_change_high": change + 1}
                row = {"length": 500, "method": method, "n_texts": 4, "ppl_change_%": change} | ends
                rows.append(about | {"status": "ok"} | row)
    return pd.DataFrame(rows)


def test_a_figure_for_each_setting_names_what_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    captions, drawn = [], []
    monkeypatch.setattr(
        figures,
        "save_figure",
        lambda fig, name, caption: (drawn.append(fig), captions.append(caption)),
    )
    use_style()
    assert figures.settings(merged()) == ["model"]
    assert figures.draw(merged()) == ["quality_vs_budget_1", "quality_vs_budget_2"]
    assert captions[0].endswith("model large. Runs that ended with oom: 1.")
    assert captions[1].endswith("over 4 texts. model small.")
    shown = {float(x) for line in drawn[1].axes[0].lines for x in line.get_xdata()}
    assert sorted(shown) == pytest.approx(
        [1.0, 1.5]
    )  # the line of dense, and streaming at both budgets


def test_runs_that_name_no_value_of_a_parameter_are_a_setting_of_their_own(monkeypatch):
    captions = []
    monkeypatch.setattr(figures, "save_figure", lambda fig, name, said: captions.append(said))
    table = merged()
    table.loc[table.model == "large", "model"] = None
    assert figures.settings(table) == ["model"]
    assert len(figures.draw(table)) == 2
    assert [caption.split("texts. ")[1].split(".")[0] for caption in captions] == [
        "model small",
        "model by default",
    ]


def test_a_setting_whose_runs_all_failed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(figures, "save_figure", lambda *args: None)
    table = merged()
    table.loc[table.model == "large", "status"] = "timeout"
    assert figures.draw(table) == ["quality_vs_budget_2"]
    told = capsys.readouterr().err
    assert told.startswith("model large: no figure. Runs that ended with timeout: ")


def test_another_table_is_refused():
    with pytest.raises(ValueError, match="columns=.*: allowed is with"):
        figures.draw(merged().drop(columns="length"))
