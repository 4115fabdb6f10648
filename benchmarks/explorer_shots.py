"""The README's two pictures of the explorer: `python -m benchmarks.explorer_shots`.

Voila shows the page, on this machine alone; Chromium has to be installed.
"""

import sys
import tempfile
from pathlib import Path

from lib.paths import ROOT, results_dir

sys.path.insert(0, str(ROOT / "tests"))

from browser import Explorer, browsing, serving


def main() -> None:
    """Write `figures/05_page.png` and `figures/05_page_writing.png`."""
    figures = results_dir() / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("voila", Path(folder)) as address,
        browsing(address, width=1100, height=1500) as page,
    ):
        explorer = Explorer(page)
        page.wait_for_timeout(10_000)  # the machine's pace is measured last
        explorer.root.screenshot(path=figures / "05_page.png")
        page.locator(".kvx button", has_text="compare").click()
        explorer.press("start_size", "ArrowLeft", 4)
        page.locator(".kvx button", has_text="write").click()
        page.wait_for_selector('.kvx[data-state="writing"]')
        page.wait_for_selector('.kvx[data-state="done"]')
        explorer.root.screenshot(path=figures / "05_page_writing.png")


if __name__ == "__main__":
    main()
