"""The README's findings read back, and the page of results that is made of them."""

from pathlib import Path

from lib.paths import NOTEBOOKS, ROOT
from lib.results.findings import command, findings, results_page

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_notebook_has_its_finding():
    found = findings(README)
    assert [one.notebook for one in found] == sorted(
        path.stem for path in NOTEBOOKS.glob("*.ipynb")
    )
    for one in found:
        assert (ROOT / one.figure).is_file()
        assert (ROOT / one.executed).is_file()
        assert one.question.endswith("?")
        assert "<!--" not in one.text
        assert one.figure.startswith(str(one.folder))


def test_a_row_is_read():
    row = (
        '| [<img src="results/smollm2/figures/01_a.png" alt="A | figure" width="180">]'
        "(results/smollm2/notebooks/01_b.ipynb) | Why?<br>[01_b](notebooks/01_b.ipynb), [executed]"
        '(x) | *SmolLM2* · <!-- results/tables/a.csv b="c d" e:.0f -->58<!-- end -->% of it. |'
    )
    (one,) = findings(f"text\n{row}\n")
    assert (one.alt, one.question, one.notebook) == ("A | figure", "Why?", "01_b")
    assert one.text == "*SmolLM2* · 58% of it."
    assert one.folder == Path("results/smollm2")
    assert command(one.folder, one.notebook).endswith("--params params/smollm2.yaml 01_b")
    assert command(Path("results"), "01_b") == "make run NB=01_b"


def test_the_page_of_results_is_the_one_that_is_written():
    page = results_page(findings(README))
    written = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert written == page, "run `python -m lib.results.readme`"
