"""Folders that the environment names, and paths as people type them."""

from pathlib import Path

import pytest

from lib import load_tokenizer
from lib.paths import MODELS, ROOT, cache_dir, local_path, results_dir


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_unset_and_empty_mean_the_default(home, monkeypatch, value):
    for name in ("KVLAB_RESULTS", "KVLAB_CACHE"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert results_dir() == ROOT / "results"
    assert cache_dir() == home / ".cache" / "kv-lab"


def test_home_is_expanded_in_the_environment(home, monkeypatch):
    monkeypatch.setenv("KVLAB_RESULTS", "~/out")
    monkeypatch.setenv("KVLAB_CACHE", "~/kept")
    assert results_dir() == home / "out"
    assert cache_dir() == home / "kept"


def test_home_is_expanded_in_a_path(home):
    (home / "reference").symlink_to(MODELS / "reference")
    assert local_path("~/text.txt") == home / "text.txt"
    assert load_tokenizer("~/reference")("a").input_ids == load_tokenizer()("a").input_ids
    assert local_path("~nobody-of-that-name/text.txt") == Path("~nobody-of-that-name/text.txt")
