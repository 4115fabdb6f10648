"""The report, as a reader has it: from disk, in a browser, with no network."""

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import PATIENCE, alone, chromium, needs_browser
from bs4 import BeautifulSoup
from playwright.sync_api import Page, sync_playwright

from lib.paths import NOTEBOOKS, ROOT

pytest.importorskip("myst_nb", reason="the report's packages are an extra, .[report]")

from lib.report.__main__ import build
from lib.report.grid import DENSE, setting

pytestmark = needs_browser
SINKS, WINDOWS = (0, 1, 4), (64, 128, 256)


def made_up_grid(least: float = 10.0, sinks=SINKS, windows=WINDOWS) -> dict:
    """A grid whose perplexity is `least` + window / 64 + sinks, and half of it for dense."""

    def one(ppl: float) -> dict:
        curve = [ppl / 10] * 3
        ends = {"nll": curve, "nll_low": [None, *curve[1:]], "nll_high": [None, *curve[1:]]}
        return {"ppl": [ppl, ppl - 1, ppl + 1], **ends}

    settings = {setting(s, w): one(least + w / 64 + s) for s in sinks for w in windows}
    about = {"model": "reference", "text": "docs", "tokens": 4096, "position": [20, 200, 2000]}
    return {"about": about, "made": {}, "settings": {DENSE: one(least / 2), **settings}}


def check_links(site: Path) -> None:
    """Every link and picture within the site leads somewhere, anchors too."""
    pages = {
        path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in site.rglob("*.html")
    }
    ids = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    broken, loaded = [], []
    for path, page in pages.items():
        for tag, name in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
            for address in (found[name] for found in page.find_all(tag) if found.get(name)):
                parts = urlsplit(address)
                if parts.scheme or parts.netloc:
                    loaded += [address] if tag != "a" and parts.scheme != "data" else []
                    continue
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                anchor = unquote(parts.fragment)
                known = anchor in ids.get(target, ()) if anchor and target in ids else True
                if not target.exists() or not known:
                    broken.append(f"{path.relative_to(site)}: {address}")
    assert broken == []
    assert loaded == []  # from elsewhere


def check_page(page: Page, address: str) -> None:
    """A page opens without an error, asks for nothing from elsewhere, and shows its pictures."""
    page.set_default_timeout(PATIENCE)
    wrong = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}"))
    local = ("file:", "data:", "blob:")
    page.on("request", lambda x: None if x.url.startswith(local) else wrong.append(x.url))
    page.goto(address)
    page.wait_for_load_state()
    empty = "[...document.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src)"
    assert (wrong, page.evaluate(empty)) == ([], []), address


def check_explorer(page: Page) -> None:
    """The sliders move the numbers and the picture."""
    words = page.get_by_text("recent tokens: perplexity")
    assert "4 sinks + 128 recent tokens: perplexity 16.0" in words.inner_text()
    assert "without sinks 12.0, dense 5.00" in words.inner_text()
    handles = page.locator(".noUi-handle")
    canvas = page.locator("canvas").first
    pictures = [canvas.screenshot()]
    for handle, key, told in (
        (0, "ArrowLeft", "1 sinks + 128 recent tokens: perplexity 13.0"),
        (1, "ArrowRight", "1 sinks + 256 recent tokens: perplexity 15.0"),
    ):
        handles.nth(handle).focus()
        page.keyboard.press(key)
        page.get_by_text(told).wait_for()
        page.wait_for_timeout(500)
        pictures.append(canvas.screenshot())
    assert len(set(pictures)) == 3
    page.get_by_role("button", name="SmolLM2").click()  # whose grid has other places
    page.get_by_text("1 sinks + 256 recent tokens: perplexity 25.0").wait_for()
    page.wait_for_timeout(500)
    assert canvas.screenshot() not in pictures


def test_the_report_works_from_disk(tmp_path, monkeypatch):
    grids = {
        "Reference model": made_up_grid(),
        "SmolLM2": made_up_grid(20, (0, 1, 2, 4), (32, 96, 256, 512)),
    }
    for name, grid in grids.items():
        (tmp_path / name).write_text(json.dumps(grid))
    monkeypatch.setattr("lib.report.__main__.GRIDS", {name: tmp_path / name for name in grids})
    site = tmp_path / "site"
    build(site)
    check_links(site)
    executed = [path.relative_to(ROOT) for path in ROOT.glob("results/**/notebooks/*.ipynb")]
    executed = [path for path in executed if path.parts[1] in ("notebooks", "smollm2")]
    names = {path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")} | {"index", "LOG"}
    names |= {str(path.with_suffix("")) for path in executed}
    names |= {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")}
    with alone(), sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name in sorted(names):
            page = browser.new_page()
            check_page(page, f"file://{site}/{name}.html")
            page.close()
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        check_page(page, f"file://{site}/explorer.html")
        check_explorer(page)
        browser.close()
