"""Build the report, a site that works from disk: `python -m lib.report [--out report]`.

Sphinx makes it, with MyST-NB for the executed notebooks; formulas are MathML, and the explorer is
drawn by Bokeh, which lies beside the pages. The repository's pages keep their places, so that links
between them hold, and a broken one ends the build.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bokeh.server
from sphinx.application import Sphinx

from lib.paths import ROOT, all_notebooks
from lib.results.declared import code_cells
from lib.results.findings import FOLDERS, findings
from lib.results.readme import filled

from .explorer import explorer, read_grid
from .pages import index_page, notebook_page, what_made

GRIDS = {name: ROOT / folder / "explorer_grid.json" for folder, name in FOLDERS.items()}
# of the repository, what the pages show or link to, and which files of it are pages
SHOWN = ("docs", "benchmarks", "models", "results", "workflow")
LEFT_OUT = shutil.ignore_patterns("*.safetensors", "tokenizer*", "__pycache__", ".*")
OTHERS = {"interactive", "quick", "sweep"}  # results that are not the repository's
PAGES = [
    "*.md",
    "docs/*.md",
    "benchmarks/README.md",
    "models/*/README.md",
    "results/tables/*.md",
]
PAGES += ["results/*/tables/*.md", "results/notebooks/*.ipynb", "results/smollm2/notebooks/*.ipynb"]
BOKEH = ("bokeh.min.js", "bokeh-widgets.min.js")
SETTINGS: dict[str, Any] = {
    "project": "KV Lab",
    "html_title": "KV Lab",
    "extensions": ["myst_nb", "sphinx_design", "lib.report.mathml"],
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "html_css_files": ["report.css"],
    "html_show_copyright": False,
    "html_math_renderer": "mathml",
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath", "colon_fence"],
    "myst_heading_anchors": 4,
    "include_patterns": PAGES,
    "suppress_warnings": ["toc.not_included"],  # the tables' pages
}
CSS = """
.sd-card-text { font-size: 0.95em; }
.sd-card-img-top { background: white; padding: 0.5em; height: 16em; object-fit: contain; }
article img { background: white; }
div.math { overflow-x: auto; margin: 1em 0; }
math { font-size: 1.1em; font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", math; }
"""


def write_source(source: Path) -> None:
    """Lay out what Sphinx reads: the repository's pages as they are, and the report's own."""
    for name in SHOWN:  # copied: MyST follows links, and would look for pages where they lead
        shutil.copytree(ROOT / name, source / name, ignore=_left_out)
    shutil.copy(ROOT / "LOG.md", source)
    found = findings(filled(ROOT / "README.md"))
    notebooks = all_notebooks()
    pages = {notebook.stem: notebook_page(notebook, found) for notebook in notebooks}
    pages["explorer"] = _explorer_page()
    pages["index"] = index_page([notebook.stem for notebook in notebooks], found)
    for name, page in pages.items():
        (source / f"{name}.md").write_text(page, encoding="utf-8")
    _write_static(source / "_static")


def _left_out(folder: str, names: list[str]) -> set[str]:
    others = OTHERS.intersection(names) if Path(folder) == ROOT / "results" else set()
    return LEFT_OUT(folder, names) | others


def _explorer_page() -> str:
    grids = {name: read_grid(file) for name, file in GRIDS.items() if file.exists()}
    if not grids:
        return "# Explorer\n\nNo grid has been computed: `python -m lib.report.grid --help`.\n"
    made = {name: grid.pop("made") for name, grid in grids.items()}  # told below, not by a slider
    notebooks = {path.stem: "".join(code_cells(path)) for path in all_notebooks()}
    live = next(stem for stem, code in notebooks.items() if "lib.experiments.explorer" in code)
    scripts = [f'<script src="_static/{name}"></script>' for name in BOKEH]
    return "\n".join(
        [
            "# Explorer",
            "",
            "**How many sinks, how wide a window?** Move the sliders: every setting was evaluated",
            "exactly beforehand, so nothing runs here. The window alone is of the same width,",
            "without the sinks. Bands and bars: 95% intervals over 16 stretches of the text, or of",
            "each span of it.",
            "",
            "```{raw} html",
            *scripts,
            *reversed(explorer(grids)),
            "```",
            "",
            *(line for name in made for line in what_made(made[name], f"What made it: {name}")),
            "",
            f"With a kernel, any setting and more views: [the notebook]({live}.md).",
            "",
        ]
    )


def _write_static(static: Path) -> None:
    static.mkdir()
    (static / "report.css").write_text(CSS, encoding="utf-8")
    shipped = Path(bokeh.server.__file__).parent / "static" / "js"
    for name in BOKEH:
        shutil.copy(shipped / name, static)


def build(out: Path) -> None:
    """Build the site into `out`, replacing what is there only if the build is good."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "source", Path(folder) / "site"
        source.mkdir()
        write_source(source)
        app = Sphinx(
            source,
            None,
            built,
            Path(folder) / "doctrees",
            "html",
            confoverrides=SETTINGS,
            status=None,
            warningiserror=True,
        )
        app.build()
        if app.statuscode:
            sys.exit(app.statuscode)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(built, out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=ROOT / "report", help="default: report")
    out = parser.parse_args().out
    build(out)
    print(f"Open {out / 'index.html'}")


if __name__ == "__main__":
    main()
