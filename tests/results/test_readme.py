"""The README does what it says: its tables are the results', its examples run, its map is whole."""

import re
import shutil
import subprocess
import sys

import pytest
import torch

from lib import disable_streaming_llm
from lib.paths import NOTEBOOKS, ROOT
from lib.results import readme
from lib.results.declared import declared_outputs
from lib.results.manifest import add_to_manifest
from lib.results.readme import PAGES, filled, is_default, quoted

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def section(title: str) -> str:
    """The README's text below a heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_quoted_tables_are_those_in_results(page):
    assert quoted(page)
    assert all((ROOT / table).is_file() for table in quoted(page)), "run `make figures`"
    assert filled(page) == page.read_text(encoding="utf-8"), "run `python -m lib.results.readme`"
    if other := [table for table in quoted(page) if not is_default(table)]:
        pytest.skip(f"made with other parameters than the page's: {', '.join(other)}")


@pytest.mark.parametrize(
    ("entry", "put"),
    [
        ({"parameters": {}}, "new\n"),
        ({"parameters": {"cache": 512}}, "old\n"),
        ({"parameters": None}, "old\n"),
        ({}, "old\n"),
    ],
)
def test_only_tables_of_default_runs_are_put_into_pages(tmp_path, monkeypatch, capsys, entry, put):
    page = tmp_path / "README.md"
    page.write_text("<!-- results/tables/a.md -->\nold\n<!-- end -->\n")
    table = tmp_path / "results" / "tables" / "a.md"
    table.parent.mkdir(parents=True)
    table.write_text("new\n")
    add_to_manifest(tmp_path / "results", {"tables/a.csv": entry})
    monkeypatch.setattr(readme, "PAGES", [page])
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    readme.main()
    assert page.read_text() == f"<!-- results/tables/a.md -->\n{put}<!-- end -->\n"
    told = f"{page}: kept as it is: no default run made results/tables/a.md\n"
    assert capsys.readouterr().err == ("" if put == "new\n" else told)


def test_library_example_runs():
    names = {}
    exec(EXAMPLES[0], names)
    assert names["result"].cache_length == 256
    assert len(names["out"].tokens) == 50
    assert names["out"].evictions > 0


def test_generate_example_runs():
    names = {}
    try:
        exec(EXAMPLES[1], names)
        assert names["streamed"].shape == (1, 1050)
        cache = names["cache"]
        assert cache.get_seq_length() == 1049
        assert set(cache.cached_lengths) == {256}
        assert cache.evictions == cache.evicted == 1049 - 256
    finally:
        disable_streaming_llm(names["model"])


def test_method_example_is_a_method():
    from lib import Held, evaluate, load_model, load_tokens

    (example,) = re.findall(r"```python\n(.*?)```", section("Add a method"), re.DOTALL)
    names = {"__name__": "every_other"}
    exec(example, names)
    method = names["EveryOther"].at_budget(64)
    assert len([line for line in example.splitlines() if line]) <= 15
    for length, every in ((64, 1), (65, 2), (200, 4)):
        index = method.keep(Held(*[torch.zeros(1, 2, length, 4)] * 2, 0, 1))
        assert index.tolist() == list(range(0, length, every))
    model, tokenizer = load_model("reference")
    tokens = load_tokens("docs", tokenizer, max_tokens=400)
    result = evaluate(model, tokens, method, chunk_size=16)
    assert result.cache_length <= 64
    assert torch.isfinite(result.nll).all()


def test_a_file_and_an_entry_make_a_row(tmp_path):
    """As the section says it, in a copy of the package."""
    shutil.copytree(ROOT / "lib", tmp_path / "lib")
    (example,) = re.findall(r"```python\n(.*?)```", section("Add a method"), re.DOTALL)
    folder = tmp_path / "lib" / "compressors"
    (folder / "every_other.py").write_text(example)
    entries = (folder / "__init__.py").read_text()
    changed = entries.replace(
        "\nfrom .fix_size", "\nfrom .every_other import EveryOther\nfrom .fix_size"
    )
    changed = changed.replace("        SnapKV,\n", "        SnapKV,\n        EveryOther,\n")
    (folder / "__init__.py").write_text(changed)
    use = "from lib.measure.rows import rows_of; print(rows_of(['every_other'], [64, 32]))"
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for budget in (64, 32):
        assert f"'every_other_{budget}': EveryOther(budget={budget})" in done.stdout


def test_map_lists_every_notebook_its_command_and_its_outputs():
    rows = re.findall(r"^\| `(\d\d_\w+)` \| ([^|]*) \| ([^|]*) \|", README, re.MULTILINE)
    assert [name for name, _, _ in rows] == sorted(
        path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")
    )
    for name, command, listed in rows:
        assert command == f"`make run NB={name}`"
        declared = {
            output.split("/")[1].split(".")[0]
            for output in declared_outputs(NOTEBOOKS / f"{name}.ipynb")[1:]
        }
        assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(declared), name
