"""Put tables from `results/` into the pages that quote them: `python -m lib.results.readme`.

A page holds `<!-- results/tables/NAME.md -->` and `<!-- end -->`; what stands between them is the
table, so that no number on a page is typed. Only tables of runs with the default parameters are put
there.
"""

import re
import sys
from pathlib import Path

from .manifest import read_manifest
from lib.paths import ROOT, atomic_path

PAGES = (ROOT / "README.md", ROOT / "models" / "reference" / "README.md")
_BLOCK = re.compile(r"(<!-- (results/tables/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def quoted(page: Path) -> list[str]:
    """The tables a page quotes, as paths from the root."""
    return [match[2] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def is_default(table: str) -> bool:
    """Whether a run with the default parameters made a table."""
    path = ROOT / table
    entries = read_manifest(path.parent.parent)
    entry = entries.get(f"tables/{path.with_suffix('.csv').name}", {})
    return entry.get("parameters") == {}


def filled(page: Path) -> str:
    """The page's text with every quoted table of a default run as it now is in `results/`."""

    def block(match: re.Match) -> str:
        if not is_default(match[2]):
            return match[0]
        return f"{match[1]}{(ROOT / match[2]).read_text(encoding='utf-8')}{match[3]}"

    return _BLOCK.sub(block, page.read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite all pages."""
    for page in PAGES:
        text = filled(page)
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        for table in quoted(page):
            if not is_default(table):
                print(f"{page}: kept as it is: no default run made {table}", file=sys.stderr)


if __name__ == "__main__":
    main()
