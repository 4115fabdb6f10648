"""Put tables and numbers from `results/` into the pages that quote them.

`python -m lib.results.readme` rewrites the pages, so that no number on them is typed. A page quotes
a whole table, or one cell of a CSV by what stands in its row and the name of its column, in a
format if the file's own digits are too many:

    <!-- results/tables/NAME.md -->
    <!-- end -->
    <!-- results/tables/NAME.csv method=streaming budget=256 ppl:.1f -->15.7<!-- end -->

Only a run that its folder stands for is put there: `results/` for the default parameters,
`results/NAME/` for those of `params/NAME.yaml`.
"""

import csv
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

from lib.names import NAME_COLUMNS, display_names
from lib.paths import PARAMS, ROOT, atomic_path

from .findings import findings, results_page
from .manifest import read_manifest

PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "models").glob("*/README.md")),
)
_QUOTE = re.compile(
    r"(<!-- (results/(?:[\w.-]+/)?tables/\w+\.(?:md|csv))([^\n]*?) -->).*?(<!-- end -->)", re.DOTALL
)


def quoted(page: Path) -> list[str]:
    """The tables a page quotes or takes numbers from, as paths from the root, each once."""
    found = (match[2] for match in _QUOTE.finditer(page.read_text(encoding="utf-8")))
    return list(dict.fromkeys(found))


def is_folders_run(table: str) -> bool:
    """Whether a table was made with the parameters that its results folder stands for."""
    path = (ROOT / table).with_suffix(".csv")
    folder = path.parent.parent
    entry = read_manifest(folder).get(f"tables/{path.name}", {})
    file = PARAMS / f"{folder.name}.yaml"
    named = folder != ROOT / "results" and file.exists()
    sections = yaml.safe_load(file.read_text(encoding="utf-8")) if named else {}
    return "parameters" in entry and entry["parameters"] == sections.get(entry["notebook"], {})


def cell(table: Path, words: str) -> str:
    """One cell of a CSV: `words` are `column=value` for its row, then `column` or `column:format`.

    Methods are named as they are typed, and come out under their display names.
    ValueError unless there is exactly one such row, with such a column.
    """
    *conditions, wanted = shlex.split(words)
    chosen = dict(condition.split("=", 1) for condition in conditions)
    column, _, form = wanted.partition(":")
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if chosen.items() <= row.items()]
    if len(rows) != 1 or column not in rows[0]:
        raise ValueError(f"{table}: {words!r} must name one cell; rows like that: {len(rows)}")
    text = rows[0][column]
    if form:
        return format(float(text), form)
    return display_names(text, column) if column in NAME_COLUMNS else text


def filled(page: Path) -> str:
    """The page's text with all that it quotes as it now is in `results/`."""

    def quote(match: re.Match) -> str:
        opening, table, words, end = match.groups()
        if not is_folders_run(table):
            return match[0]
        path = ROOT / table
        text = cell(path, words) if words else f"\n{_linked(path, page)}"
        return f"{opening}{text}{end}"

    return _QUOTE.sub(quote, page.read_text(encoding="utf-8"))


def _linked(table: Path, page: Path) -> str:
    """A table's Markdown for a page, with a link to the CSV that has all its digits."""
    file = table.with_suffix(".csv")
    link = f"[`{file.name}`]({os.path.relpath(file, page.parent)})"
    return table.read_text(encoding="utf-8").replace(f"`{file.name}`", link, 1)


def main() -> None:
    """Rewrite all pages, and `results/README.md` from the README's findings."""
    for page in PAGES:
        text = filled(page)
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        for table in quoted(page):
            if not is_folders_run(table):
                print(f"{page}: {table} kept as it was: made by another run", file=sys.stderr)
    with atomic_path(ROOT / "results" / "README.md") as temporary:
        found = findings((ROOT / "README.md").read_text(encoding="utf-8"))
        temporary.write_text(results_page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
