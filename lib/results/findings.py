"""The findings: the README's table read back, and `results/README.md`, which is made of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from lib.paths import ROOT

from .manifest import read_manifest

# the results folders of the repository, by whose results they are
FOLDERS = {Path("results"): "Reference model", Path("results/smollm2"): "SmolLM2"}
_ROW = re.compile(
    r'^\| \[<img src="(?P<figure>[^"]+)" alt="(?P<alt>[^"]+)"[^>]*>\]\((?P<executed>[^)]+)\)'
    r" \| (?P<question>.+?)<br>\[(?P<notebook>\w+)\].*? \| (?P<text>.+) \|$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Finding:
    """A row of the README's table, its numbers filled in; paths are from the root."""

    figure: str
    alt: str
    executed: str
    question: str
    notebook: str  # its name
    text: str

    @property
    def folder(self) -> Path:
        """The results folder that it is of, from the root."""
        return Path(self.executed).parent.parent


def findings(readme: str) -> list[Finding]:
    """The findings of the README's text, in its order."""
    page = re.sub(r"<!--.*?-->", "", readme, flags=re.DOTALL)
    return [Finding(**match.groupdict()) for match in _ROW.finditer(page)]


def command(folder: Path, notebook: str) -> str:
    """What one types to make a notebook's files in a results folder, given from the root."""
    if folder == Path("results"):
        return f"make run NB={notebook}"
    run = f".venv/bin/python -m lib.run --params params/{folder.name}.yaml"
    return f"KVLAB_RESULTS={folder} {run} {notebook}"


def results_page(found: list[Finding]) -> str:
    """The text of `results/README.md`: figure, finding, command; then every file's caption."""
    lines = [
        "# Results",
        "",
        "Written by `python -m lib.results.readme`. What made a file, in full: `manifest.json`",
        "([how to read it](../docs/parameters.md#what-made-a-result)).",
        "",
        "| figure | finding | command |",
        "|:--|:--|:--|",
    ]
    for one in found:
        picture = f'<img src="{_inside(one.figure)}" alt="{one.alt}" width="180">'
        picture = f"[{picture}]({_inside(one.executed)})"
        made = command(one.folder, one.notebook)
        lines.append(f"| {picture} | **{one.question}** {one.text} | `{made}` |")
    for folder in FOLDERS:
        lines += ["", f"## Files in `{folder}`", ""]
        for file, entry in read_manifest(ROOT / folder).items():
            path = _inside(folder / file)
            lines.append(f"- [{Path(file).stem}]({path}): {entry['caption'] or 'no caption'}")
    return "\n".join(lines) + "\n"


def _inside(path: str | Path) -> str:
    return Path(path).relative_to("results").as_posix()
