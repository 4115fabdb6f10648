"""The README's two pictures of the explorer: `python -m benchmarks.explorer_shots`.

Voila shows the page, on this machine alone; Chromium has to be installed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lib.paths import ROOT, atomic_path, results_dir
from lib.results.manifest import add_to_manifest
from lib.results.provenance import entry, run_by_script

sys.path.insert(0, str(ROOT / "tests"))

from browser import Explorer, browsing, serving


def shoot(explorer: Explorer, name: str, caption: str) -> None:
    """Save a picture of the page as it is now."""
    with atomic_path(results_dir() / "figures" / f"{name}.png") as path:
        path.write_bytes(explorer.root.screenshot())
    add_to_manifest(results_dir(), {f"figures/{name}.png": entry(caption)})


def main() -> None:
    """Write `figures/05_page.png` and `figures/05_page_writing.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    run_by_script("benchmarks/explorer_shots.py", parser, parser.parse_args())
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("voila", Path(folder)) as address,
        browsing(address, width=1100, height=1500) as page,
    ):
        explorer = Explorer(page)
        page.wait_for_timeout(10_000)  # the machine's pace is measured last
        shoot(explorer, "05_page", "The explorer at its defaults.")
        page.locator(".kvx button", has_text="compare").click()
        explorer.press("start_size", "ArrowLeft", 4)
        page.locator(".kvx button", has_text="write").click()
        page.wait_for_selector('.kvx[data-state="writing"]')
        page.wait_for_selector('.kvx[data-state="done"]')
        caption = (
            "The explorer without sinks, beside the pinned setting with four, and what is written."
        )
        shoot(explorer, "05_page_writing", caption)


if __name__ == "__main__":
    main()
