"""Progress bars are shown where someone looks."""

import sys

import pytest
from tqdm.auto import tqdm

from lib import progress as module
from lib.progress import progress


@pytest.fixture(autouse=True)
def no_headless_run(monkeypatch):
    monkeypatch.delenv("KVLAB_NOTEBOOK", raising=False)


def stderr_is_terminal(monkeypatch, answer: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: answer, raising=False)


def test_at_a_terminal(monkeypatch, capsys):
    stderr_is_terminal(monkeypatch, True)
    assert list(progress([1, 2], desc="counting")) == [1, 2]
    bar = progress(total=7, desc="reading", unit="token")
    bar.update(7)
    bar.close()
    shown = capsys.readouterr().err
    assert "counting: 100%" in shown
    assert "7/7" in shown
    assert "token/s" in shown


def test_not_where_nobody_looks(monkeypatch, capsys):
    stderr_is_terminal(monkeypatch, False)
    assert progress([1]).disable
    stderr_is_terminal(monkeypatch, True)
    assert progress([1], disable=True).disable
    monkeypatch.setenv("KVLAB_NOTEBOOK", "03_speed")
    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    assert list(progress([1, 2])) == [1, 2]
    progress(total=7).update(1)
    assert capsys.readouterr().err == ""


def test_in_an_open_notebook(monkeypatch):
    stderr_is_terminal(monkeypatch, False)
    assert not module._in_notebook()
    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    bar = progress([1], desc="counting")
    assert isinstance(bar, tqdm)
    assert not bar.disable
    bar.close()
