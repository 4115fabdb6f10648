"""The explorer in a real browser: JupyterLab and Voila, driven by keys."""

import json
import os
import statistics

from browser import SHOTS, Explorer, alone, browsing, end_kernels, needs_browser, serving

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
    """Of twenty quick moves the last one is computed, and few of those before it are."""
    before = explorer.root.get_attribute("data-ended").split("|")
    explorer.press("recent_size", "ArrowRight", 20)
    ended = explorer.root.get_attribute("data-ended").split("|")[len(before) :]
    chosen = [label for label in ended if label.startswith("sinks + window")]
    assert chosen[-1].endswith(explorer.box("recent_size").input_value())
    assert len(chosen) < 10


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
        newest_only(explorer)
        bad_input(explorer)
        times = pace(explorer) | {"load of the machine": os.getloadavg()[0]}
        print(json.dumps(times, indent=1))
        (SHOTS / "times.json").write_text(json.dumps(times, indent=1))
        page.locator(".kvx button", has_text="compare").click()
        explorer.root.locator("select[data-control=method]").select_option("snapkv")
        explorer.changes += 1
        explorer.settle()
        assert page.locator(".kvx .reading", has_text="pinned").count() == 1
        writes(explorer)
        explorer.shot("lab-writing")
        page.set_viewport_size({"width": 800, "height": 720})
        explorer.root.evaluate("root => root.scrollIntoView()")
        page.wait_for_timeout(500)
        explorer.shot("lab-800")
        assert explorer.slider("recent_size").bounding_box()["width"] > 80
        page.set_viewport_size({"width": 1280, "height": 720})
        page.wait_for_timeout(500)
        views = [page.locator(f".kvx {part}").first.bounding_box() for part in (".group", "table")]
        assert views[1]["y"] + views[1]["height"] - views[0]["y"] < 620  # from controls to cost
        assert not list((tmp_path / "results").glob("**/*"))  # a visit saves nothing


def test_in_the_dark_theme(tmp_path):
    with alone(), serving("lab", tmp_path, dark=True) as address, browsing(address) as page:
        explorer = Explorer.run_all(page)
        explorer.shot("lab-dark")
        colors = explorer.root.evaluate(
            "root => [getComputedStyle(root).color, getComputedStyle(root).backgroundColor]"
        )
        text, ground = (sum(map(int, x.split("(")[1].rstrip(")").split(",")[:3])) for x in colors)
        assert text - ground > 400
        assert "invert(0.88)" in page.evaluate(PICTURE)
        ppl = explorer.ppl("chosen")
        page.keyboard.press("Control+s")
        notebook = tmp_path / "notebooks" / "05_explorer.ipynb"
        while "widget-state+json" not in notebook.read_text(encoding="utf-8"):
            page.wait_for_timeout(500)
        end_kernels(address)
        page.reload()
        assert Explorer(page).ppl("chosen") == ppl  # drawn from what was saved


def test_in_voila(tmp_path):
    with alone(), serving("voila", tmp_path) as address, browsing(address) as page:
        explorer = Explorer(page)
        explorer.shot("voila")
        sinks_matter(explorer)
        writes(explorer)
        explorer.shot("voila-writing")
        assert not list((tmp_path / "results").glob("**/*"))  # a visit saves nothing
