"""What a result says of the run that made it."""

import hashlib
import json
import re
import subprocess
from datetime import datetime
from importlib.metadata import version

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from lib import load_model, load_tokens, loaded, save_figure
from lib.paths import MODELS, ROOT
from lib.results import code
from lib.results.code import code_facts
from lib.results.manifest import MANIFEST, add_to_manifest, read_manifest
from lib.results.provenance import OF_THE_MOMENT, entry, in_short, lasting


@pytest.fixture
def fresh(monkeypatch):
    """Nothing loaded yet."""
    monkeypatch.setattr(loaded, "_models", [])
    monkeypatch.setattr(loaded, "_texts", [])


def test_an_entry_tells_model_text_and_machine(fresh, monkeypatch):
    model, tokenizer = load_model("reference", dtype=torch.float64)
    load_model("reference", dtype=torch.float64)
    tokens = load_tokens("docs", tokenizer, 100)
    state = torch.random.get_rng_state()
    made = entry("A caption.")
    assert torch.equal(torch.random.get_rng_state(), state)  # measuring draws numbers
    assert [made["caption"], made["notebook"], made["parameters"]] == ["A caption.", None, None]
    (model_fact,), (text,) = made["models"], made["texts"]
    content = model_fact.pop("sha256")
    assert re.fullmatch("[0-9a-f]{16}", content)
    assert model_fact == {
        "name": "reference",
        "revision": None,
        "dtype": "float64",
        "device": str(model.device),
        "attention": "sdpa",
    }
    digest = hashlib.sha256(b"".join(int(token).to_bytes(8, "little") for token in tokens))
    assert text == {
        "name": "docs",
        "revision": None,
        "split": "heldout",
        "tokens": 100,
        "sha256": digest.hexdigest()[:16],
    }
    assert f"transformers=={version('transformers')}" in made["packages"].split()
    assert made["threads"] == torch.get_num_threads()
    assert made["rates"]["gb_per_s"] > 0
    assert made["rates"]["gflop_per_s"] > 0
    assert made["rates"] is entry("")["rates"]  # measured once
    assert made["cpu_peak_mib"] > 100
    assert made["seconds"] >= 0


def test_the_content_of_a_model_is_what_it_is_told_by(fresh, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in (MODELS / "reference").iterdir():
            if file.is_file():
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    (tmp_path / "two" / "config.json").write_text(json.dumps(config | {"unused": 1}))
    for name in ("reference", str(tmp_path / "one"), str(tmp_path / "two")):
        load_model(name)
    load_model("random:EleutherAI/pythia-70m")
    reference, one, two, random = loaded.loaded()["models"]
    assert [one["name"], two["name"]] == ["one", "two"]  # no path of this machine
    assert one["sha256"] == reference["sha256"] != two["sha256"]
    assert [random["name"], random["sha256"]] == ["random:EleutherAI/pythia-70m", None]


def test_paths_of_this_machine_are_shortened():
    assert loaded.short_name(ROOT / "models" / "a") == "models/a"
    assert loaded.short_name("../shared/book.txt") == "book.txt"
    assert loaded.short_name("~/book.txt") == "book.txt"
    assert loaded.short_name("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    assert loaded.short_name("models/a") == "models/a"


def test_code_facts_follow_the_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(code, "ROOT", tmp_path)
    notebook = tmp_path / "notebooks" / "01_a.ipynb"
    for file in (notebook, tmp_path / "lib" / "a.py", tmp_path / "results" / "a.csv"):
        file.parent.mkdir()
        file.write_text("1")
    first = code_facts(notebook, {"seed": 3, "cache": 4})
    assert [first["commit"], first["dirty"], first["seed"]] == [None, None, 3]  # no checkout
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    second = code_facts(notebook, {"cache": 4, "seed": 3})
    assert re.fullmatch("[0-9a-f]{40}", second["commit"])
    assert second["dirty"] is False
    assert {**first, "commit": None, "dirty": None, "start": 0} == {
        **second,
        **{"commit": None, "dirty": None, "start": 0},
    }
    (tmp_path / "results" / "a.csv").write_text("2")  # what a run writes is not what it reads
    (tmp_path / "lib" / "README.md").write_text("2")
    assert code_facts()["dirty"] is False
    (tmp_path / "lib" / "a.py").write_text("2")
    notebook.write_text("2")
    third = code_facts(notebook, {"cache": 5, "seed": 3})
    assert third["dirty"] is True
    hashes = ("lib_sha256", "notebook_sha256", "parameters_sha256")
    assert all(third[name] != second[name] for name in hashes)
    assert code_facts()["notebook_sha256"] is code_facts()["parameters_sha256"] is None


def test_a_headless_run_is_told_from_its_beginning(sandbox):
    cell = "import pandas as pd\nfrom lib import save_table\n"
    cell += "save_table(pd.DataFrame({'x': [1.5]}), 'small')"
    sandbox.notebook("01_good", cell)
    done = sandbox.call("papermill", "notebooks/01_good.ipynb", "-p", "cache", "5")
    assert done.returncode == 0, done.stderr
    made = read_manifest(sandbox.results)["tables/small.csv"]
    assert [made["notebook"], made["parameters"]] == ["01_good", {"cache": 5}]
    assert made["commit"] is None  # a copy without git
    given = {"cache": 5, "model": "reference", "positions": "in_cache", "lengths": [128]}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    assert made["parameters_sha256"] == digest[:16]
    assert re.fullmatch("[0-9a-f]{16}", made["notebook_sha256"])
    began = datetime.fromisoformat(made["start"]).timestamp()
    written = (sandbox.results / MANIFEST).stat().st_mtime
    assert began + made["seconds"] <= written + 1


def test_figures_carry_their_entry(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    load_model("reference")
    fig, _ = plt.subplots()
    plt.close(fig)
    save_figure(fig, "lines", "Words with <angles> & “quotes”.")
    save_figure(fig, "lines", "Words with <angles> & “quotes”.")  # small print stands once
    made = read_manifest(tmp_path)["figures/lines.png"]
    told = json.loads(Image.open(tmp_path / "figures" / "lines.png").text["Description"])
    assert told == lasting(made)
    assert set(made) - set(told) == set(OF_THE_MOMENT) - {"gpu_peak_mib"}
    svg = (tmp_path / "figures" / "lines.svg").read_text()
    assert "&lt;angles&gt; &amp; “quotes”" in svg
    (small,) = fig.texts
    assert small.get_text() == in_short(made)
    assert re.fullmatch(r"KV Lab (\w{7}|no commit)(, changed)? · reference", small.get_text())
    place = small.get_window_extent()
    others = [axes.get_tightbbox() for axes in fig.axes]
    assert not any(place.overlaps(other) for other in others)


def test_facts_that_files_share_stand_once(tmp_path):
    run = {"notebook": "01_a", "parameters": {}, "commit": "abc"}
    entries = {
        "tables/a.csv": {"caption": "a", "seconds": 1, **run},
        "tables/b.csv": {"caption": "b", "seconds": 2, **run},
        "tables/c.csv": {"caption": "c", "seconds": 2, **run, "commit": "def"},
    }
    add_to_manifest(tmp_path, entries)
    assert read_manifest(tmp_path) == entries
    written = json.loads((tmp_path / MANIFEST).read_text())
    assert len(written["runs"]) == 2
    assert written["files"]["tables/a.csv"]["run"] == written["files"]["tables/b.csv"]["run"]
    add_to_manifest(tmp_path, {"tables/c.csv": entries["tables/a.csv"]})
    assert len(json.loads((tmp_path / MANIFEST).read_text())["runs"]) == 1  # no run without files
