"""Put tables from `results/` into the pages that quote them: `python -m lib.readme`.

A page holds `<!-- results/tables/NAME.md -->` and `<!-- end -->`; what stands between them is the
table, so that no number on a page is typed.
"""

import re
from pathlib import Path

from lib.paths import ROOT, atomic_path

PAGES = (ROOT / "README.md", ROOT / "models" / "reference" / "README.md")
_BLOCK = re.compile(r"(<!-- (results/tables/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: Path, root: Path = ROOT) -> str:
    """The page's text with every quoted table as it now is in `results/`."""

    def table(match: re.Match) -> str:
        return f"{match[1]}{(root / match[2]).read_text(encoding='utf-8')}{match[3]}"

    return _BLOCK.sub(table, page.read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite all pages."""
    for page in PAGES:
        text = filled(page)
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
