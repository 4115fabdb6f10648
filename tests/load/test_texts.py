"""Texts by name, and the docstrings of installed packages."""

import json
import re
import socket
import sys
from dataclasses import replace
from importlib.util import find_spec

import datasets
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lib import load_tokens, paths
from lib.load import docstrings as docs
from lib.load import hub
from lib.load.texts import HUB_TEXTS, texts_of

WIKITEXT = "Salesforce/wikitext"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Looking up any host is an error that the test sees, whoever catches it."""
    looked_up = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **more: looked_up.append(address))
    yield
    assert looked_up == []


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


@pytest.fixture
def rows_read(monkeypatch):
    """Every row that `datasets` hands out, in order."""
    iterate, read = datasets.IterableDataset.__iter__, []

    def counted(dataset):
        for row in iterate(dataset):
            read.append(row)
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counted)
    return read


TEXTS = [f"w{number} w{number + 1}\n  w{number + 2} other words" for number in range(90)]


def written(path, texts, rows: int = 8) -> str:
    """`texts` in a file: one by one in parquet, or joined by blank lines; and its path."""
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        table = pd.DataFrame({"text": texts, "length": [len(text) for text in texts]})
        table.to_parquet(path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize("name", ["text.txt", "text.parquet", "a [1]* ?.txt", "ö[1]*?.parquet"])
def test_a_file_is_read_no_further_than_needed(tmp_path, rows_read, name):
    path = written(tmp_path / name, TEXTS)
    expected = word_tokenizer()("\n\n".join(TEXTS)).input_ids
    assert load_tokens(path, word_tokenizer()).tolist() == expected
    everything = len(rows_read)
    rows_read.clear()
    assert load_tokens(path, word_tokenizer(), max_tokens=10).tolist() == expected[:10]
    assert len(rows_read) < everything / 4
    for max_tokens in (1, 2, 49, 150, 449, 450, 451):
        tokens = load_tokens(path, word_tokenizer(), max_tokens)
        assert tokens.tolist() == expected[:max_tokens]


def test_line_ends_of_all_systems_are_the_same_text(tmp_path):
    bytes_tokenizer = Tokenizer(models.BPE({"\n": 0, "a": 1, "\r": 2}, []))
    bytes_tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer)
    for ends in ("\n", "\r\n", "\r"):
        (tmp_path / "text.txt").write_bytes(f"a{ends}{ends}a{ends}".encode())
        assert load_tokens(tmp_path / "text.txt", bytes_tokenizer).tolist() == [1, 0, 0, 1, 0]


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

    def fake(hub_id, configuration, split, revision, streaming):
        asked.append((hub_id, configuration, revision, split, streaming))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(hub, "dataset_info", lambda name, revision, timeout: None)
    tokens = load_tokens(name, word_tokenizer(), max_tokens=4, split=split)
    assert tokens.tolist() == [0, 0, 1, 1]
    text = HUB_TEXTS[name]
    assert asked == [(text.hub_id, text.configuration, text.revision, hub_split, True)]
    assert len(read) < 20
    read.clear()
    assert len(load_tokens(name, word_tokenizer(), split=split)) == 100
    assert len(read) == 50


@pytest.mark.parametrize("pad", ["=" * 2000 + " ", " " * 2000])
def test_a_hub_text_is_read_until_it_has_enough_tokens(monkeypatch, pad):
    """However few tokens its characters make."""
    rows = [{"text": f"{pad}w{number}"} for number in range(50)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: iter(rows))
    monkeypatch.setattr(hub, "dataset_info", lambda name, revision, timeout: None)
    whole = load_tokens("pg19", word_tokenizer())
    assert load_tokens("pg19", word_tokenizer(), max_tokens=45).tolist() == whole[:45].tolist()
    assert len(load_tokens("pg19", word_tokenizer(), max_tokens=1000)) == len(whole)


@pytest.mark.parametrize("error", [ConnectionError, OSError, RuntimeError, TimeoutError])
@pytest.mark.parametrize(
    "answers", [pytest.param(False, id="no answer"), pytest.param(True, id="lost later")]
)
def test_a_hub_text_offline_is_one_clear_error(monkeypatch, error, answers):
    asked = []

    def offline(*args, **kwargs):
        raise error("no route")

    def ask(name, revision, timeout):
        asked.append((name, revision, timeout))
        if not answers:
            raise error("no route")

    monkeypatch.setattr(hub, "dataset_info", ask)
    monkeypatch.setattr(
        datasets, "load_dataset", offline if answers else lambda *a, **k: pytest.fail("asked twice")
    )
    with pytest.raises(OSError, match=r"text 'wikitext' \(Salesforce/wikitext\) .* use 'docs'"):
        load_tokens("wikitext", word_tokenizer())
    assert asked == [(WIKITEXT, HUB_TEXTS["wikitext"].revision, 10)]


WIKITEXT_CARD = """\
---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - split: test
    path: wikitext-103-raw-v1/test-*
- config_name: wikitext-2-raw-v1
  data_files:
  - split: test
    path: wikitext-2-raw-v1/test-*
  - split: train
    path: wikitext-2-raw-v1/train-*
---
"""


@pytest.fixture
def hub_copy(tmp_path, monkeypatch):
    """Both data sets in folders laid out as on the hub; the last file of `train` is broken."""
    monkeypatch.setattr(hub, "dataset_info", lambda name, revision, timeout: None)
    for name, inside in {"wikitext": "wikitext-2-raw-v1", "pg19": "data"}.items():
        folder = tmp_path / "hub" / name / inside
        folder.mkdir(parents=True)
        written(folder / "test-00000-of-00001.parquet", TEXTS)
        written(folder / "train-00000-of-00003.parquet", TEXTS[30:50])
        written(folder / "train-00001-of-00003.parquet", TEXTS[:30])
        (folder / "train-00002-of-00003.parquet").write_text("no parquet")
        monkeypatch.setitem(HUB_TEXTS, name, replace(HUB_TEXTS[name], hub_id=str(folder.parent)))
    other = tmp_path / "hub" / "wikitext" / "wikitext-103-raw-v1"
    other.mkdir()
    written(other / "test-00000-of-00001.parquet", ["another configuration"])
    (tmp_path / "hub" / "wikitext" / "README.md").write_text(WIKITEXT_CARD)


@pytest.mark.parametrize("name", ["wikitext", "pg19"])
def test_the_layout_of_the_hub(hub_copy, rows_read, name):
    """As `datasets` reads it, but for the network."""
    heldout = word_tokenizer()("\n\n".join(TEXTS)).input_ids
    assert load_tokens(name, word_tokenizer()).tolist() == heldout
    assert [row["text"] for row in rows_read] == TEXTS
    rows_read.clear()
    # the broken file is one that isn't reached
    train = word_tokenizer()("\n\n".join(TEXTS[30:50] + TEXTS[:30])).input_ids
    tokens = load_tokens(name, word_tokenizer(), max_tokens=30, split="train")
    assert tokens.tolist() == train[:30]
    assert 12 * 30 <= sum(len(row["text"]) + 2 for row in rows_read) < 12 * 30 + 50
    with pytest.raises(OSError, match=f"text '{name}' .* could not be read from the hub"):
        load_tokens(name, word_tokenizer(), split="train")


def test_hub_texts_are_pinned_to_a_commit():
    assert all(re.fullmatch("[0-9a-f]{40}", text.revision) for text in HUB_TEXTS.values())


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
    file.write_text(json.dumps([("from", "the disk"), ("a repeat of", "the disk")]))
    assert docs.docs_text("heldout") == "from\nthe disk\n"
    file.unlink()
    for path in sorted(package.rglob("*.py"), reverse=True):  # written anew, the other way round
        content = path.read_text()
        path.unlink()
        path.write_text(content)
    assert docs.docs_text("heldout") == EXPECTED
    tokens = load_tokens("docs", word_tokenizer("w1"), max_tokens=3)
    assert tokens.tolist() == [1, 99, 99]


def test_packages_that_are_not_asked_for_are_not_read(package, monkeypatch, cache):
    monkeypatch.setitem(docs.SPLITS, "heldout", {"fake_pkg": "torch", "no_such_pkg": "torch"})
    assert next(docs.docs_rows("heldout")) == EXPECTED
    assert load_tokens("docs", word_tokenizer("w1"), max_tokens=3).tolist() == [1, 99, 99]
    (file,) = (cache / "text").iterdir()  # what was read is kept, though there is more
    monkeypatch.setattr(docs, "_file_docstrings", None)
    assert next(docs.docs_rows("heldout")) == EXPECTED
    with pytest.raises(ModuleNotFoundError, match="package 'no_such_pkg' is not installed"):
        load_tokens("docs", word_tokenizer("w1"))
    assert [*(cache / "text").iterdir()] == [file]


def test_repeats_are_dropped_across_packages(package, monkeypatch):
    """Also where one of them comes from the cache, and whichever was read first."""
    other = package.parent / "other_pkg"
    other.mkdir()
    (other / "__init__.py").write_text(f'"""A text that is its own."""\n{SECOND}')
    for split, names in {"heldout": ["fake_pkg", "other_pkg"], "train": ["other_pkg"]}.items():
        monkeypatch.setitem(docs.SPLITS, split, dict.fromkeys(names, "torch"))
    alone = docs.docs_text("train")
    assert "class B:\nAnother class." in alone
    own = "module other_pkg\nA text that is its own.\n"
    assert docs.docs_text("heldout") == f"{EXPECTED}\n{own}"
    assert docs.docs_text("train") == alone


def test_another_version_is_another_text(package, monkeypatch, cache):
    docs.docs_text("heldout")
    monkeypatch.setattr(docs, "version", lambda name: "another")
    docs.docs_text("heldout")
    assert len(list((cache / "text").iterdir())) == 2


def test_docs_refuse():
    with pytest.raises(ValueError, match=r"split='test': allowed are \['heldout', 'train'\]"):
        docs.docs_text("test")
    with pytest.raises(ModuleNotFoundError, match="package 'no_such_pkg' is not installed"):
        docs._package_docstrings("no_such_pkg", "torch")


def test_held_out_packages_are_held_out():
    assert not docs.HELDOUT.keys() & docs.TRAIN.keys()
    assert not set(docs.HELDOUT.values()) & set(docs.TRAIN.values())
    for package in (*docs.HELDOUT, *docs.TRAIN):
        assert find_spec(package) is not None


def test_texts_of():
    texts = texts_of(torch.arange(100, 121), num_texts=4, length=5)
    assert texts.tolist() == [
        [100, 101, 102, 103, 104],
        [105, 106, 107, 108, 109],
        [110, 111, 112, 113, 114],
        [115, 116, 117, 118, 119],
    ]
    with pytest.raises(ValueError, match="tokens=19: allowed is num_texts . length = 20 or more"):
        texts_of(torch.arange(19), 4, 5)
    # a special first token is every text's first; another one is nobody's
    texts = texts_of(torch.arange(20), 4, 5, bos_token_id=0)
    assert texts[:, 0].tolist() == [0] * 4
    assert texts[:, 1:].flatten().tolist() == [t for t in range(20) if t % 5]
    assert torch.equal(texts_of(torch.arange(20), 4, 5, 7), torch.arange(20).view(4, 5))
