"""The pages do what they say: numbers are the results', examples run, links lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from lib import disable_streaming_llm
from lib.compressors import method_table
from lib.paths import NOTEBOOKS, PARAMS, ROOT
from lib.results import readme
from lib.results.declared import declared_outputs
from lib.results.manifest import add_to_manifest, read_manifest
from lib.results.readme import PAGES, cell, filled, is_folders_run, quoted
from lib.run.params import changed, check, read_contract

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
WITH_NUMBERS = (
    "README.md",
    "docs/methods.md",
    "docs/models.md",
    "benchmarks/README.md",
    "models/reference/README.md",
    "models/smollm2/README.md",
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def examples(text: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def section(text: str, title: str) -> str:
    """A page's text below a heading."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_page_is_filled():
    written = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    written += ROOT.glob("models/*/*.md")
    assert sorted(PAGES) == sorted(set(written) - {ROOT / "LOG.md"})
    assert {name(page) for page in PAGES if quoted(page)} == set(WITH_NUMBERS)


@pytest.mark.parametrize("page", WITH_NUMBERS)
def test_quoted_numbers_are_those_in_results(page):
    page = ROOT / page
    assert all((ROOT / table).is_file() for table in quoted(page)), "run `make figures`"
    assert filled(page) == page.read_text(encoding="utf-8"), "run `python -m lib.results.readme`"
    if other := [table for table in quoted(page) if not is_folders_run(table)]:
        pytest.skip(f"made with other parameters than the page's: {', '.join(other)}")


@pytest.mark.parametrize(
    ("folder", "parameters", "put"),
    [
        ("results", {}, True),
        ("results", {"cache": 512}, False),
        ("results", None, False),  # a run by hand
        ("results", "no entry", False),
        ("results/large", {"cache": 512}, True),
        ("results/large", {}, False),
        ("results/no-file", {}, True),
        ("results/no-file", {"cache": 512}, False),
    ],
)
def test_only_runs_that_a_folder_stands_for_are_put_into_pages(
    tmp_path, monkeypatch, capsys, folder, parameters, put
):
    page = tmp_path / "README.md"
    text = (
        f"<!-- {folder}/tables/a.md -->\n%s<!-- end --> and "
        f"<!-- {folder}/tables/a.csv b=x c:.1f -->%s<!-- end -->\n"
    )
    page.write_text(text % ("old\n", "1.0"))
    tables = tmp_path / folder / "tables"
    tables.mkdir(parents=True)
    (tables / "a.md").write_text("new\n")
    (tables / "a.csv").write_text("b,c\nx,2.04\n")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "large.yaml").write_text("00_one: {cache: 512}\n02_two: {cache: 9}\n")
    entry = {"tables/a.csv": {"notebook": "00_one", "parameters": parameters}}
    add_to_manifest(tables.parent, {} if parameters == "no entry" else entry)
    monkeypatch.setattr(readme, "PAGES", [page])
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "PARAMS", tmp_path / "params")
    readme.main()
    assert page.read_text() == text % (("new\n", "2.0") if put else ("old\n", "1.0"))
    told = [
        f"{page}: {folder}/tables/a.{end} kept as it was: made by another run\n"
        for end in ("md", "csv")
    ]
    assert capsys.readouterr().err == ("" if put else "".join(told))


def test_a_number_is_one_cell(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text(
        'method,budget,ppl,best_%\n"a + b, lazy",64,15.6733,h2o\nc,64,1234.5,\nc,128,2,\n'
    )
    assert cell(table, "budget=128 ppl") == "2"
    assert cell(table, "method=c budget=64 ppl:,.0f") == "1,234"
    assert cell(table, 'method="a + b, lazy" ppl:.1f') == "15.7"
    assert cell(table, "budget=64 method='a + b, lazy' best_%") == "h2o"
    for words in (
        "method=c ppl",
        "method=d ppl",
        "methods=c ppl",
        "budget=128 nll",
        "budget=12 ppl",
    ):
        with pytest.raises(ValueError, match="must name one cell; rows like that: [012]"):
            cell(table, words)


def test_methods_in_cells_have_their_display_names(tmp_path):
    table = tmp_path / "a.csv"
    row = 'x_8,streaming_lazy_512,"baseline, h2o_8",baseline'
    table.write_text(f"method,best,as_good,chosen\n{row}\n")
    assert cell(table, "method=x_8 best") == "sinks + window, lazy 512"
    assert cell(table, "method=x_8 as_good") == "dense; h2o_8"
    assert cell(table, "method=x_8 method") == "x_8"
    assert cell(table, "method=x_8 chosen") == "baseline"  # no column of names


def test_parameter_files_of_results_folders_name_no_default():
    """A manifest names what is not the default: a file that names more is never recognised."""
    folders = [path.parent.name for path in ROOT.glob("results/*/manifest.json")]
    folders = [folder for folder in folders if (PARAMS / f"{folder}.yaml").exists()]
    assert "smollm2" in folders
    for folder in folders:
        sections = yaml.safe_load((PARAMS / f"{folder}.yaml").read_text(encoding="utf-8"))
        entries = read_manifest(ROOT / "results" / folder).values()
        for stem in sections.keys() & {entry["notebook"] for entry in entries}:
            contract = read_contract(NOTEBOOKS / f"{stem}.ipynb")
            assert changed(contract, check(contract, sections[stem])) == sections[stem], stem


def test_library_example_runs():
    names = {}
    exec(*examples(README), names)
    assert names["result"].cache_length == 256
    assert len(names["out"].tokens) == 50
    assert names["out"].evictions > 0


def test_generate_example_runs():
    names = {}
    try:
        exec(*examples(DOCS["generate"]), names)
        assert names["streamed"].shape == (1, 1050)
        cache = names["cache"]
        assert cache.get_seq_length() == 1049
        assert set(cache.cached_lengths) == {256}
        assert cache.evictions == cache.evicted == 1049 - 256
    finally:
        disable_streaming_llm(names["model"])


def test_method_example_is_a_method():
    from lib import Held, evaluate, load_model, load_tokens

    (example,) = examples(section(DOCS["methods"], "Add a method"))
    names = {"__name__": "every_other"}
    exec(example, names)
    method = names["EveryOther"].at_budget(64)
    assert len([line for line in example.splitlines() if line]) <= 15
    held = {length: Held(*[torch.zeros(1, 2, length, 4)] * 2, 0, 1) for length in (64, 65, 200)}
    assert method.keep(held[64]) is None
    for length, every in ((65, 2), (200, 4)):
        assert method.keep(held[length]).tolist() == list(range(0, length, every))
    model, tokenizer = load_model("reference")
    tokens = load_tokens("docs", tokenizer, max_tokens=400)
    result = evaluate(model, tokens, method, chunk_size=16)
    assert result.cache_length <= 64
    assert torch.isfinite(result.nll).all()


def test_the_table_of_methods_agrees_with_the_registry():
    """Each row is that of a method, and names its paper."""
    rows = re.findall(r"^\| `(\w+)` \|.* \| ([^|]*) \|$", DOCS["methods"], re.MULTILINE)
    table = method_table().set_index("method")
    # one of your own needs no row here; the fourteen that are shipped have one
    assert {method for method, _ in rows} <= set(table.index)
    assert len(rows) >= 14
    for method, told in rows:
        paper, _, number = table.paper[method].partition(", arXiv:")
        assert told.replace("[", "").startswith(paper), method
        assert number in told, method


def test_map_lists_every_notebook_its_command_and_its_outputs():
    what = section(DOCS["parameters"], "What makes what")
    rows = re.findall(r"^\| `(\d\d_\w+)` \| ([^|]*) \| ([^|]*) \|", what, re.MULTILINE)
    assert [stem for stem, _, _ in rows] == notebooks()
    for stem, command, listed in rows:
        assert command == f"`make run NB={stem}`"
        assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(outputs(stem)), stem


def test_every_parameter_file_has_a_row():
    rows = re.findall(
        r"^\| `params/(\S+)` \|", section(DOCS["parameters"], "Parameter files"), re.M
    )
    assert sorted(rows) == sorted(path.name for path in PARAMS.iterdir())


def notebooks() -> list[str]:
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def outputs(stem: str) -> set[str]:
    """Names of the figures and tables that a notebook declares."""
    declared = declared_outputs(NOTEBOOKS / f"{stem}.ipynb")[1:]
    return {output.split("/")[1].split(".")[0] for output in declared}


def test_the_readme_shows_every_notebook_with_a_figure_of_its_own():
    rows = re.findall(r"^\| \[<img (.*)$", README, re.MULTILINE)
    assert len(rows) == len(notebooks())
    for stem, row in zip(notebooks(), rows, strict=True):
        folder, figure = re.search(r"(results(?:/smollm2)?)/figures/(\w+)\.png", row).groups()
        assert figure in outputs(stem)
        copy = f"{folder}/notebooks/{stem}.ipynb"
        assert targets(row)[1:] == [copy, f"notebooks/{stem}.ipynb", copy]


def test_the_tree_names_every_room():
    tree = re.search(r"```\n(notebooks/.*?)```", README, re.DOTALL)[1]
    rooms = {path.parent.name for path in ROOT.glob("lib/*/__init__.py")}
    assert all((ROOT / folder).is_dir() for folder in re.findall(r"^(\w+)/", tree, re.MULTILINE))
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == rooms


def targets(text: str) -> list[str]:
    """Where pictures and links lead, pictures given in HTML first; what stands in code is none."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r'(?:src|href)="([^"]+)"', text) + re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(path: Path) -> str:
    """A page's text, or that of a notebook's Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        ROOT / "LOG.md",
        ROOT / "results" / "README.md",
        *NOTEBOOKS.glob("*.ipynb"),
        *ROOT.glob("results/**/*.ipynb"),
    ],
    ids=name,
)
def test_links_lead_somewhere(page):
    for target in targets(prose(page)):
        if not target.startswith(("https://", "mailto:")):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_manifests_name_what_is_there():
    folders = [path.parent for path in ROOT.glob("results/**/manifest.json")]
    assert ROOT / "results" in folders
    for folder in folders:
        named = set(read_manifest(folder))
        assert [name for name in named if not (folder / name).exists()] == []
        there = [*folder.glob("figures/*.png"), *folder.glob("tables/*.csv")]
        assert {str(path.relative_to(folder)) for path in there} - named == set()


def test_links_are_found_and_their_headings_too():
    text = (
        'see [a](b/c.md#d-e), ![p](f.png), <img src="g.png"> and `[no](h.md)`\n```\n[no](i)\n```\n'
    )
    assert targets(text) == ["g.png", "b/c.md#d-e", "f.png"]
    assert anchors("# What makes what\n## Methods: what is shown\n```\n# no\n```\n") == {
        "what-makes-what",
        "methods-what-is-shown",
    }
