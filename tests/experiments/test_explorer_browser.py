"""The explorer in a real browser: JupyterLab and Voila, driven by keys."""

import json
import os
import re

import nbformat
from browser import SHOTS, Explorer, alone, browsing, needs_browser, serving
from echoes import longest_wait
from explorer_visits import (
    bad_input,
    dark_theme,
    has_alternative_text,
    keys_reach_all,
    newest_only,
    pace,
    pins_are_numbered,
    plays,
    sinks_matter,
    slow_model,
    stays_when_reopened,
    waits_for_a_kernel,
    window_to_the_end,
    writes,
    writing_is_overtaken,
)
from nbconvert import HTMLExporter

from lib.experiments.explorer.page import HEADLESS
from lib.paths import ROOT

pytestmark = needs_browser


def test_in_jupyterlab(tmp_path):
    with alone(), serving("lab", tmp_path) as address, browsing(address) as page:
        explorer = Explorer.run_all(page)
        explorer.shot("lab")
        sinks_matter(explorer)
        waits_for_a_kernel(explorer)
        window_to_the_end(explorer)
        newest_only(explorer)
        keys_reach_all(explorer)
        plays(explorer)
        bad_input(explorer, "lab-refused")
        explorer.type("step", "1000")
        explorer.settle()
        pins_are_numbered(explorer)
        writing_is_overtaken(explorer)
        writes(explorer)
        explorer.shot("lab-writing")
        times = pace(explorer) | {"load of the machine": os.getloadavg()[0]}
        page.locator(".kvx button", has_text="compare").click()
        explorer.root.locator("select[data-control=method]").select_option("snapkv")
        explorer.settle()
        assert page.locator(".kvx .reading", has_text="pinned").count() == 1
        page.set_viewport_size({"width": 800, "height": 720})
        explorer.root.evaluate("root => root.scrollIntoView()")
        page.wait_for_timeout(500)
        explorer.shot("lab-800")
        assert explorer.slider("recent_size").bounding_box()["width"] > 80
        page.set_viewport_size({"width": 1280, "height": 720})
        page.wait_for_timeout(500)
        views = [page.locator(f".kvx {part}").first.bounding_box() for part in (".group", "table")]
        assert views[1]["y"] + views[1]["height"] - views[0]["y"] < 620  # from controls to cost
        times["the kernel's longest wait, SmolLM2 being loaded and read"] = longest_wait(explorer)
        print(json.dumps(times, indent=1))
        (SHOTS / "times.json").write_text(json.dumps(times, indent=1))
        slow_model(explorer)
        dark_theme(explorer)
        stays_when_reopened(explorer, address, tmp_path / "notebooks" / "05_explorer.ipynb")
        has_alternative_text(page, address, tmp_path / "notebooks" / "picture.ipynb")
        assert not list((tmp_path / "results").glob("**/*"))  # a visit saves nothing


def test_the_executed_copy_as_html(tmp_path):
    """Exported, it opens from disk with no network: pictures, and no widget that is dead."""
    copy = nbformat.read(ROOT / "results" / "notebooks" / "05_explorer.ipynb", as_version=4)
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(copy)
    (tmp_path / "05_explorer.html").write_text(html, encoding="utf-8")
    with alone(), browsing("about:blank") as page:
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route(re.compile("^https?://"), lambda route: route.abort())
        page.goto(f"file://{tmp_path}/05_explorer.html")
        page.wait_for_load_state()
        widths = page.evaluate("() => [...document.images].map(x => x.naturalWidth)")
        shown = page.inner_text("body")
        page.screenshot(path=SHOTS / "export.png", full_page=True)
    assert errors == []
    assert widths
    assert all(widths)
    assert HEADLESS.strip("*").split("`")[0] in shown
    assert "jupyter.widget" not in html
    assert "model not found" not in shown.lower()


def test_in_voila(tmp_path):
    with alone(), serving("voila", tmp_path) as address, browsing(address) as page:
        explorer = Explorer(page)
        explorer.shot("voila")
        sinks_matter(explorer)
        newest_only(explorer)
        bad_input(explorer, "voila-refused")
        writes(explorer)
        explorer.shot("voila-writing")
        assert not list((tmp_path / "results").glob("**/*"))  # a visit saves nothing
