"""Texts by name, and the docstrings of installed packages."""

import sys
from importlib.util import find_spec

import datasets
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lib import docs, hub, load_tokens, paths
from lib.data import HUB_TEXTS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def word_tokenizer(first: str | None = None) -> PreTrainedTokenizerFast:
    """Token n is the word `w<n>`, 99 any other; with `first`, every text begins with that word."""
    vocabulary = {f"w{number}": number for number in range(99)} | {"other": 99}
    words = Tokenizer(models.WordLevel(vocabulary, "other"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first is not None:
        special = [(first, vocabulary[first])]
        words.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=special
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="other")


def test_a_text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("w5 w7\n\nw7 wörd w98\n", encoding="utf-8")
    tokens = load_tokens(str(path), word_tokenizer())
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [5, 7, 7, 99, 98]
    assert load_tokens(str(path), word_tokenizer(), max_tokens=3).tolist() == [5, 7, 7]
    assert load_tokens(str(path), word_tokenizer(), max_tokens=9).tolist() == [5, 7, 7, 99, 98]
    assert load_tokens(str(path), word_tokenizer("w1")).tolist() == [1, 5, 7, 7, 99, 98]


def test_a_parquet_file(tmp_path):
    path = tmp_path / "text.parquet"
    pd.DataFrame({"id": [1, 2], "text": ["w5 w7", "w3"]}).to_parquet(path)
    assert load_tokens(str(path), word_tokenizer(), split="train").tolist() == [5, 7, 3]


def test_nulls_in_a_parquet_file_are_dropped(tmp_path):
    path = tmp_path / "text.parquet"
    pd.DataFrame({"text": ["w5", None, "w3"]}).to_parquet(path)
    assert load_tokens(str(path), word_tokenizer()).tolist() == [5, 3]


def test_files_that_hold_no_text_are_refused_by_name(tmp_path):
    pd.DataFrame({"words": ["w5"]}).to_parquet(tmp_path / "column.parquet")
    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    pd.DataFrame({"text": [None, ""]}).to_parquet(tmp_path / "nulls.parquet")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "latin.txt").write_bytes("wörd".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    for path in tmp_path.glob("*.*"):
        told = (
            "is empty" if path.name in ("empty.txt", "nulls.parquet") else "must be UTF-8, a .par"
        )
        with pytest.raises(ValueError, match=f"{path.name}' .*{told}"):
            load_tokens(str(path), word_tokenizer())


def test_a_relative_path_is_found_from_the_repository_too(tmp_path, monkeypatch):
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.chdir(here)
    (root / "text.txt").write_text("w5")
    assert load_tokens("text.txt", word_tokenizer()).tolist() == [5]
    (here / "text.txt").write_text("w6")
    assert load_tokens("text.txt", word_tokenizer()).tolist() == [6]


def test_tokens_are_read_from_disk_the_second_time(tmp_path, cache):
    path = tmp_path / "text.txt"
    path.write_text("w5 w7")
    calls = []

    class Counted(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            calls.append(text)
            return super().__call__(text, **options)

    tokenizer = Counted(tokenizer_object=word_tokenizer().backend_tokenizer, unk_token="other")
    assert load_tokens(str(path), tokenizer).tolist() == [5, 7]
    assert load_tokens(str(path), tokenizer, max_tokens=1).tolist() == [5]
    assert calls == ["w5 w7"]
    assert len(list((cache / "tokens").iterdir())) == 1
    # another tokenizer or another content of the same file is another entry
    assert load_tokens(str(path), word_tokenizer("w1")).tolist() == [1, 5, 7]
    path.write_text("w5 w8")
    assert load_tokens(str(path), tokenizer).tolist() == [5, 8]
    assert len(list((cache / "tokens").iterdir())) == 3


@pytest.mark.parametrize("name", ["wikitext", "pg19"])
@pytest.mark.parametrize(("split", "hub_split"), [("heldout", "test"), ("train", "train")])
def test_a_hub_text_is_streamed_and_no_further_than_needed(monkeypatch, name, split, hub_split):
    asked, read = [], []

    def rows():
        for number in range(50):
            read.append(number)
            yield {"text": f"w{number} w{number}"}

    def fake(hub_id, configuration, split, streaming):
        asked.append((hub_id, configuration, split, streaming))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(hub, "dataset_info", lambda name, timeout: None)
    tokens = load_tokens(name, word_tokenizer(), max_tokens=4, split=split)
    assert tokens.tolist() == [0, 0, 1, 1]
    assert asked == [(*HUB_TEXTS[name][:2], hub_split, True)]
    assert len(read) < 20
    read.clear()
    assert len(load_tokens(name, word_tokenizer(), split=split)) == 100
    assert len(read) == 50


@pytest.mark.parametrize("pad", ["=" * 2000 + " ", " " * 2000])
def test_a_hub_text_is_read_until_it_has_enough_tokens(monkeypatch, pad):
    """However few tokens its characters make."""
    rows = [{"text": f"{pad}w{number}"} for number in range(50)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: iter(rows))
    monkeypatch.setattr(hub, "dataset_info", lambda name, timeout: None)
    whole = load_tokens("pg19", word_tokenizer())
    assert load_tokens("pg19", word_tokenizer(), max_tokens=45).tolist() == whole[:45].tolist()
    assert len(load_tokens("pg19", word_tokenizer(), max_tokens=1000)) == len(whole)


@pytest.mark.parametrize("error", [ConnectionError, OSError, TimeoutError])
@pytest.mark.parametrize(
    "answers", [pytest.param(False, id="no answer"), pytest.param(True, id="lost later")]
)
def test_a_hub_text_offline_is_one_clear_error(monkeypatch, error, answers):
    asked = []

    def offline(*args, **kwargs):
        raise error("no route")

    def ask(name, timeout):
        asked.append((name, timeout))
        if not answers:
            raise error("no route")

    monkeypatch.setattr(hub, "dataset_info", ask)
    monkeypatch.setattr(
        datasets, "load_dataset", offline if answers else lambda *a, **k: pytest.fail("asked twice")
    )
    with pytest.raises(OSError, match=r"text 'wikitext' \(Salesforce/wikitext\) .* use 'docs'"):
        load_tokens("wikitext", word_tokenizer())
    assert asked == [("Salesforce/wikitext", 10)]


@pytest.mark.parametrize(
    ("name", "options", "kind", "told"),
    [
        ("wikitxt", {}, ValueError, "text name='wikitxt': allowed is 'docs', 'wikitext'"),
        ("a.csv", {}, ValueError, "text name='a.csv'"),
        ("absent.txt", {}, FileNotFoundError, "text 'absent.txt': no such file"),
        (None, {}, ValueError, "text name=None: allowed is 'docs'"),
        ("docs", {"split": "test"}, ValueError, "split='test': allowed is one of"),
        ("docs", {"max_tokens": 0}, ValueError, "max_tokens=0: allowed is an int >= 1"),
    ],
)
def test_refused(name, options, kind, told):
    with pytest.raises(kind, match=told):
        load_tokens(name, word_tokenizer(), **options)


FIRST = '''\
"""The package, told at some length."""
import os


class A(dict, metaclass=type):
    """A class that is documented well."""

    def method(self, x: int, *rest, key=1, **others) -> int:
        """A method that is documented well."""

        def inside():
            """A function inside of a method."""

    def short(self):
        """Too short."""


async def later(a, /, b=(1, 2)):
    """A coroutine that comes after the class."""
'''
SECOND = '''\
def repeated():
    """A class that is documented well."""


class B:
    """Another class.

        Indented, and with a blank line.

    Back again.
    """
'''
EXPECTED = """\
module fake_pkg
The package, told at some length.

class A(dict):
A class that is documented well.

def method(self, x: int, *rest, key=1, **others):
A method that is documented well.

def inside():
A function inside of a method.

def later(a, /, b=(1, 2)):
A coroutine that comes after the class.

module fake_pkg.a.deep
A module of a folder in the package.

class B:
Another class.

    Indented, and with a blank line.

Back again.
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four files, one of them broken, as the only one of both splits."""
    root = tmp_path / "site" / "fake_pkg"
    (root / "a").mkdir(parents=True)
    (root / "__init__.py").write_text(FIRST)
    (root / "b.py").write_text(SECOND)
    (root / "a" / "broken.py").write_text('def f(:\n    """A function that does not parse."""\n')
    (root / "a" / "deep.py").write_text('"""A module of a folder in the package."""\n')
    monkeypatch.syspath_prepend(root.parent)
    monkeypatch.setitem(docs.SPLITS, "heldout", {"fake_pkg": "torch"})
    yield root
    sys.modules.pop("fake_pkg", None)


def test_docs_text(package):
    assert docs.docs_text("heldout") == EXPECTED
    assert "fake_pkg" not in sys.modules  # it is read, not run


def test_docs_text_is_written_once_and_does_not_depend_on_the_order_of_files(package, cache):
    docs.docs_text("heldout")
    (file,) = (cache / "text").iterdir()
    file.write_text("from the disk")
    assert docs.docs_text("heldout") == "from the disk"
    file.unlink()
    for path in sorted(package.rglob("*.py"), reverse=True):  # written anew, the other way round
        content = path.read_text()
        path.unlink()
        path.write_text(content)
    assert docs.docs_text("heldout") == EXPECTED
    tokens = load_tokens("docs", word_tokenizer("w1"), max_tokens=3)
    assert tokens.tolist() == [1, 99, 99]


def test_another_version_is_another_text(package, monkeypatch, cache):
    docs.docs_text("heldout")
    monkeypatch.setattr(docs, "version", lambda name: "another")
    docs.docs_text("heldout")
    assert len(list((cache / "text").iterdir())) == 2


def test_docs_refuse():
    with pytest.raises(ValueError, match=r"split='test': allowed are \['heldout', 'train'\]"):
        docs.docs_text("test")
    with pytest.raises(ModuleNotFoundError, match="package 'no_such_pkg' is not installed"):
        docs._package_text("no_such_pkg", set())


def test_held_out_packages_are_held_out():
    assert not docs.HELDOUT.keys() & docs.TRAIN.keys()
    assert not set(docs.HELDOUT.values()) & set(docs.TRAIN.values())
    for package in (*docs.HELDOUT, *docs.TRAIN):
        assert find_spec(package) is not None
