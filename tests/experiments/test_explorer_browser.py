"""The explorer in a real browser: JupyterLab and Voila, driven by keys."""

import json
import os
import re
import statistics
from pathlib import Path

import nbformat
import psutil
from browser import SHOTS, Explorer, alone, browsing, end_kernels, needs_browser, serving
from echoes import longest_wait
from nbconvert import HTMLExporter

from lib.experiments.explorer.page import HEADLESS
from lib.paths import ROOT

pytestmark = needs_browser
# how a picture among a notebook's outputs is shown
PICTURE = """() => {
    const box = document.body.appendChild(document.createElement("div"));
    box.className = "jp-RenderedImage";
    return getComputedStyle(box.appendChild(new Image())).filter;
}"""


def sinks_matter(explorer: Explorer) -> None:
    """From 4 sinks to none, by the keyboard: readout, text and perplexity change."""
    before = explorer.ppl("chosen"), explorer.strip(), explorer.box("start_size").input_value()
    assert before[2] == "4"
    assert 'class="t sink"' in before[1]
    explorer.press("start_size", "ArrowLeft", 4)
    assert explorer.box("start_size").input_value() == "0"
    assert 'class="t sink"' not in explorer.strip()
    assert 'class="t gone"' in explorer.strip()
    assert explorer.ppl("chosen") > 1.2 * before[0]
    explorer.press("start_size", "ArrowRight", 4)
    assert explorer.ppl("chosen") == before[0]


def newest_only(explorer: Explorer) -> None:
    """A slider is dragged over many values: of the losses only the last one's are computed."""
    before = explorer.root.get_attribute("data-ended").split("|")
    box, mouse = explorer.slider("recent_size").bounding_box(), explorer.page.mouse
    height = box["y"] + box["height"] / 2
    mouse.move(box["x"] + 0.55 * box["width"], height)
    mouse.down()
    mouse.move(box["x"] + 0.75 * box["width"], height, steps=20)
    mouse.up()
    last = explorer.box("recent_size").input_value()
    explorer.page.wait_for_selector(f'.kvx[data-state="done"][data-ended*=" + {last}"]')
    explorer.changes = int(explorer.root.get_attribute("data-settled"))
    ended = explorer.root.get_attribute("data-ended").split("|")[len(before) :]
    chosen = [label for label in ended if label.startswith("sinks + window")]
    assert chosen == [f"sinks + window 4 + {last}"]


def keys_reach_all(explorer: Explorer) -> None:
    """Tab goes through every control that can be used, and the buttons, in their order."""
    controls = explorer.root.locator("[data-control]:enabled:visible, button:visible")
    shown = "part => part.dataset.control ?? part.textContent"
    controls.first.focus()
    for place in range(controls.count()):
        here = explorer.page.locator(":focus")
        while not here.evaluate("x => x.matches('[data-control], button')"):  # text that scrolls
            explorer.page.keyboard.press("Tab")
        assert here.evaluate(shown) == controls.nth(place).evaluate(shown)
        explorer.page.keyboard.press("Tab")


def plays(explorer: Explorer) -> None:
    """The step walks on by itself till it is paused."""
    play, step = explorer.root.locator("button", has_text="play"), explorer.box("step")
    first = int(step.input_value())
    play.click()
    moved = "first => document.querySelector('input[type=number][data-control=step]').value > first"
    explorer.page.wait_for_function(moved, arg=first + 2)
    explorer.root.locator("button", has_text="pause").click()
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    last = step.input_value()
    explorer.page.wait_for_timeout(1000)
    assert step.input_value() == last
    explorer.changes = int(explorer.root.get_attribute("data-settled"))


def waits_for_a_kernel(explorer: Explorer) -> None:
    """While the kernel does not answer the page says so beside the old picture, then goes on."""
    started = psutil.Process().children(recursive=True)
    kernels = [one for one in started if "ipykernel_launcher" in " ".join(one.cmdline())]
    assert kernels
    ppl = explorer.ppl("chosen")
    for kernel in kernels:
        kernel.suspend()
    explorer.press("start_size", "ArrowLeft", settle=False)
    explorer.page.wait_for_selector('.kvx.late[data-state="waiting"]')
    assert "older than the controls" in explorer.root.locator(".status").inner_text()
    for kernel in kernels:
        kernel.resume()
    explorer.settle()
    assert explorer.root.get_attribute("data-state") != "waiting"
    explorer.press("start_size", "ArrowRight")
    assert explorer.ppl("chosen") == ppl


def window_to_the_end(explorer: Explorer) -> None:
    """The last place of the window's slider is one that the model allows."""
    explorer.press("recent_size", "End")
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    window, sinks = (int(explorer.box(x).input_value()) for x in ("recent_size", "start_size"))
    assert f"sinks + window {sinks} + {window}" in explorer.root.locator(".reading").inner_text()
    explorer.type("recent_size", "124")
    explorer.settle()


def slow_model(explorer: Explorer) -> None:
    """A real model shows how far it is, and can be stopped."""
    explorer.type("model", "smollm2")
    explorer.page.wait_for_selector('.kvx[data-state="computing"] progress[value]')
    explorer.shot("lab-slow")
    explorer.page.keyboard.press("Escape")
    explorer.page.wait_for_selector('.kvx[data-state="stopped"]')
    explorer.type("model", "reference")
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    explorer.settle()


def bad_input(explorer: Explorer) -> None:
    """A sentence beside the control, and all is well again with the next value."""
    explorer.type("recent_size", "5000")
    error = explorer.page.locator(".kvx .error", has_text="window = 5000")
    error.wait_for()
    assert explorer.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    explorer.shot("refused")
    explorer.type("recent_size", "124")
    explorer.settle()
    assert error.count() == 0


def writes(explorer: Explorer) -> None:
    """Three columns of text."""
    explorer.root.locator("button", has_text="write").click()
    explorer.page.wait_for_selector('.kvx[data-state="writing"]')
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    columns = explorer.root.locator("[data-column] p").all_inner_texts()
    assert len(columns) == 3
    assert all(len(text.split()) > 5 for text in columns)
    assert len(set(columns)) == 3
    explorer.root.locator(".three").evaluate("part => part.scrollIntoView({block: 'end'})")


def dark_theme(explorer: Explorer) -> None:
    """The page follows when JupyterLab's theme is changed, and so do pictures among the outputs."""
    page = explorer.page
    page.click('.lm-MenuBar-itemLabel:text("Settings")')
    page.hover('.lm-Menu-itemLabel:text-is("Theme")')
    page.click('.lm-Menu-itemLabel:text-is("JupyterLab Dark")')
    page.wait_for_selector(".kvx[data-dark]")
    explorer.shot("lab-dark")
    colors = explorer.root.evaluate(
        "root => [getComputedStyle(root).color, getComputedStyle(root).backgroundColor]"
    )
    text, ground = (sum(map(int, x.split("(")[1].rstrip(")").split(",")[:3])) for x in colors)
    assert text - ground > 400
    assert "invert(0.88)" in page.evaluate(PICTURE)


def stays_when_reopened(explorer: Explorer, address: str, notebook: Path) -> None:
    """Saved, its kernel gone, and opened again: drawn from what was saved."""
    page, ppl = explorer.page, explorer.ppl("chosen")
    page.keyboard.press("Control+s")
    while "widget-state+json" not in notebook.read_text(encoding="utf-8"):
        page.wait_for_timeout(500)
    end_kernels(address)
    page.reload()
    assert Explorer(page).ppl("chosen") == ppl


def pace(explorer: Explorer) -> dict[str, float]:
    """Median milliseconds from a key to the pixels: of eight each."""
    found = {}
    plan = {
        "a new window": ("recent_size", "ArrowLeft"),
        "one that is known": ("recent_size", "ArrowRight"),
    }
    plan |= {"another step": ("step", "ArrowRight"), "another head": ("head", "ArrowRight")}
    for name, (control, key) in plan.items():
        first = explorer.changes + 1
        for _ in range(4 if control == "head" else 8):
            explorer.press(control, key)
        explorer.page.wait_for_timeout(300)
        times = [entry for seq, entry in explorer.times().items() if seq >= first]
        for part in ("first", "all"):
            found[f"{name}: {part} picture"] = statistics.median(
                x[part] for x in times if part in x
            )
    return found


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
        bad_input(explorer)
        explorer.type("step", "1000")
        explorer.settle()
        writes(explorer)
        explorer.shot("lab-writing")
        times = pace(explorer) | {"load of the machine": os.getloadavg()[0]}
        page.locator(".kvx button", has_text="compare").click()
        explorer.root.locator("select[data-control=method]").select_option("snapkv")
        explorer.changes += 1
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
        writes(explorer)
        explorer.shot("voila-writing")
        assert not list((tmp_path / "results").glob("**/*"))  # a visit saves nothing
