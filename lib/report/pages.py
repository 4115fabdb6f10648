"""The report's own pages, in Markdown: the index, and a page for each notebook."""

import json
import os
from pathlib import Path

from lib.paths import ROOT
from lib.results.declared import declared_outputs
from lib.results.findings import FOLDERS, Finding, command
from lib.results.manifest import read_manifest


def index_page(stems: list[str], findings: list[Finding]) -> str:
    """The findings with their figures, and the way to all pages; `stems` name the notebooks."""
    cards = []
    for found in findings:
        cards += [
            f":::{{grid-item-card}} {found.question}",
            f":link: {found.notebook}",
            ":link-type: doc",
            f":img-top: {found.figure}",
            f":img-alt: {found.alt}",
            "",
            found.text,
            ":::",
        ]
    return "\n".join(
        [
            "# KV Lab",
            "",
            "What each way of compressing a KV cache costs in quality and buys in speed. Every",
            "number below is read from the tables; a card leads to its notebook's figures. Rows",
            "marked *SmolLM2* are of a real pretrained model, the others of the small reference",
            "model, which shows how a method acts and is no measure of large models. Words: the",
            "[glossary](docs/glossary.md). To try settings: the [explorer](explorer.md).",
            "",
            "::::{grid} 1 1 2 2",
            ":gutter: 3",
            "",
            *cards,
            "::::",
            "",
            _toctree("Notebooks", ["explorer", *stems]),
            _toctree("Reading", [f"docs/{page}" for page in _docs()]),
            _toctree("More", ["benchmarks/README", *_cards(), "LOG"]),
        ]
    )


def notebook_page(notebook: Path, findings: list[Finding]) -> str:
    """What a notebook found and made, both models side by side, with what made each file."""
    title = _title(notebook)
    lines = [f"# {title}", ""]
    ours = [found for found in findings if found.notebook == notebook.stem]
    lines += [f"**{found.question}** {found.text}\n" for found in ours]
    entries = {folder: read_manifest(ROOT / folder) for folder in FOLDERS}
    executed = [folder for folder in FOLDERS if _copy(folder, notebook).is_file()]
    for folder in executed:
        copy = _copy(folder, notebook).relative_to(ROOT)
        lines.append(
            f"- {FOLDERS[folder]}: [executed notebook]({copy}), `{command(folder, notebook.stem)}`"
        )
    for file in _shown(notebook):
        if there := {folder: e[file] for folder, e in entries.items() if file in e}:
            lines += ["", f"## {Path(file).stem}", "", *_side_by_side(file, there)]
    copies = [
        f"{FOLDERS[folder]}, executed <{_copy(folder, notebook).relative_to(ROOT).with_suffix('')}>"
        for folder in executed
    ]
    return "\n".join([*lines, "", _toctree("", copies), ""])


def _shown(notebook: Path) -> list[str]:
    """Figures and tables as the manifest names them, in the notebook's order."""
    return [file for file in declared_outputs(notebook) if file.endswith((".png", ".csv"))]


def _side_by_side(file: str, entries: dict[Path, dict]) -> list[str]:
    """A figure or table of each folder, under its caption, with its entry folded away."""
    lines = [f"::::{{grid}} 1 1 {len(entries)} {len(entries)}", ":gutter: 2", ""]
    for folder, entry in entries.items():
        lines += [":::{grid-item}", f"**{FOLDERS[folder]}**" if len(entries) > 1 else "", ""]
        if file.endswith(".png"):
            path = folder / file
            lines += [f"[![{entry['caption']}]({path})]({path})", "", entry["caption"]]
        else:
            lines += folded("Table", [(ROOT / folder / file).with_suffix(".md").read_text("utf-8")])
        lines += ["", *what_made(entry), ":::"]
    return [*lines, "::::"]


def folded(title: str, lines: list[str]) -> list[str]:
    """`lines` that are shown when their title is clicked."""
    return [f"```````{{dropdown}} {title}", *lines, "```````"]


def what_made(entry: dict, title: str = "What made it") -> list[str]:
    """A result's entry, folded away."""
    return folded(title, ["```json", json.dumps(entry, indent=1, ensure_ascii=False), "```"])


def _toctree(caption: str, pages: list[str]) -> str:
    head = ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join([*head, "", *pages, "```", ""])


def _title(notebook: Path) -> str:
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).partition("\n")[0].removeprefix("# ")


def _copy(folder: Path, notebook: Path) -> Path:
    return ROOT / folder / "notebooks" / notebook.name


def _docs() -> list[str]:
    return sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


def _cards() -> list[str]:
    return sorted(
        os.path.relpath(page.with_suffix(""), ROOT) for page in ROOT.glob("models/*/README.md")
    )
