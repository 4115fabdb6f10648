"""The README's two pictures of the explorer: `python -m benchmarks.explorer_shots`.

Voila shows the page, on this machine alone; Chromium has to be installed. The second picture is of
SmolLM2, some minutes' work, at the explorer's defaults but for layer and head, which are those of
`params/smollm2.yaml`; what it writes is the one text that the page's seed gives.
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

WRITING = (
    "The explorer with SmolLM2, and 120 tokens that it writes after token 1,000: dense, with a "
    "window of 128, and with 4 sinks and a window of 124; temperature 0.7, seed 0."
)


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
        page.set_default_timeout(3_600_000)
        for name, value in {"model": "smollm2", "layer": "25", "head": "7"}.items():
            explorer.type(name, value)
            explorer.settle()
        page.locator(".kvx button", has_text="write").click()
        page.wait_for_selector('.kvx[data-state="writing"]')
        page.wait_for_selector('.kvx[data-state="done"]')
        page.wait_for_timeout(10_000)
        shoot(explorer, "05_page_writing", WRITING)


if __name__ == "__main__":
    main()
