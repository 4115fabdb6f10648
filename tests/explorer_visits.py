"""What a visitor tries on the explorer's page, each with what is to be seen then."""

import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import psutil
from browser import Explorer, end_kernels
from IPython.core.pylabtools import print_figure

from lib.plots import Picture, subplots

# how a picture among a notebook's outputs is shown, with a caption and without
PICTURES = """() => ["jp-RenderedHTML", "jp-RenderedImage"].map(name => {
    const box = document.body.appendChild(document.createElement("div"));
    box.className = name;
    return getComputedStyle(box.appendChild(new Image())).filter;
})"""


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


@contextmanager
def kernels_held() -> Iterator[None]:
    """Kernels that this test has started stand still."""
    started = psutil.Process().children(recursive=True)
    kernels = [one for one in started if "ipykernel_launcher" in " ".join(one.cmdline())]
    assert kernels
    for kernel in kernels:
        kernel.suspend()
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.resume()


def waits_for_a_kernel(explorer: Explorer) -> None:
    """While the kernel does not answer the page says so beside the old picture, then goes on."""
    ppl = explorer.ppl("chosen")
    with kernels_held():
        explorer.press("start_size", "ArrowLeft", settle=False)
        explorer.page.wait_for_selector('.kvx.late[data-state="waiting"]')
        assert "older than the controls" in explorer.root.locator(".status").inner_text()
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
    """A real model shows how far it is, answers meanwhile, falls silent, and can be stopped."""
    page = explorer.page
    explorer.type("model", "smollm2")
    page.wait_for_selector('.kvx[data-state="computing"] progress[value]')
    explorer.shot("lab-slow")
    explorer.press("head", "ArrowLeft", 2, settle=False)
    answered = "n => Number(document.querySelector('.kvx').dataset.seq) >= n"
    page.wait_for_function(answered, arg=explorer.asked)
    assert explorer.root.get_attribute("data-state") == "computing"
    with kernels_held():
        page.wait_for_selector('.kvx.silent[data-state="computing"]')
        assert "no sign from the kernel" in explorer.root.locator(".status").inner_text()
    page.wait_for_selector(".kvx:not(.silent)")
    page.keyboard.press("Escape")
    page.wait_for_selector('.kvx[data-state="stopped"]')
    explorer.type("model", "reference")
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    explorer.settle()


def bad_input(explorer: Explorer, shot: str) -> None:
    """A sentence beside the control, and all is well again with the next value."""
    explorer.type("recent_size", "5000")
    error = explorer.page.locator(".kvx .error", has_text="window = 5000")
    error.wait_for()
    assert explorer.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    explorer.shot(shot)
    explorer.type("recent_size", "124")
    explorer.settle()
    assert error.count() == 0


def pins_are_numbered(explorer: Explorer) -> None:
    """Settings are pinned once each, with the same number in the legend and at their lines."""
    compare, clear = (explorer.root.locator("button", has_text=x) for x in ("compare", "clear"))
    pinned = explorer.root.locator(".reading span", has_text="pinned")
    compare.click()
    pinned.first.wait_for()
    explorer.press("start_size", "ArrowLeft")
    compare.click()
    pinned.nth(1).wait_for()
    compare.click()
    explorer.press("start_size", "ArrowRight")
    told = [text.split(":")[0] for text in pinned.all_inner_texts()]
    assert told == ["┈┈ 1 sinks + window 4 + 124", "┈┈ 2 sinks + window 3 + 124"]
    marks = explorer.root.locator("svg text:not([text-anchor])").all_text_contents()
    assert [text for text in marks if text.isdigit()] == ["1", "2"]
    clear.click()
    pinned.first.wait_for(state="detached")
    assert pinned.count() == 0


def writing_is_overtaken(explorer: Explorer) -> None:
    """What is written when a control is moved stays, and is said to be a part."""
    explorer.root.locator("button", has_text="write").click()
    explorer.page.wait_for_selector('.kvx[data-state="writing"] [data-column]')
    explorer.press("start_size", "ArrowLeft")
    heading = explorer.root.locator("h4", has_text="Written after").inner_text()
    assert re.search(r"unfinished: \d+ of 120 tokens", heading)
    explorer.press("start_size", "ArrowRight")


def writes(explorer: Explorer) -> None:
    """Three columns of text."""
    explorer.root.locator("button", has_text="write").click()
    explorer.page.wait_for_selector('.kvx[data-state="writing"]')
    explorer.page.wait_for_selector('.kvx[data-state="done"]')
    assert "unfinished" not in explorer.root.locator("h4", has_text="Written").inner_text()
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
    assert all("invert(0.88)" in filter for filter in page.evaluate(PICTURES))


def stays_when_reopened(explorer: Explorer, address: str, notebook: Path) -> None:
    """Saved, its kernel gone, which the page tells, and opened again: drawn from what was saved."""
    page, ppl = explorer.page, explorer.ppl("chosen")
    page.keyboard.press("Control+s")
    while "widget-state+json" not in notebook.read_text(encoding="utf-8"):
        page.wait_for_timeout(500)
    end_kernels(address)
    explorer.press("head", "ArrowLeft", settle=False)
    page.wait_for_selector('.kvx.late[data-state="waiting"]')
    explorer.shot("lab-no-kernel")
    page.reload()
    assert Explorer(page).ppl("chosen") == ppl


def has_alternative_text(page, address: str, notebook: Path) -> None:
    """A figure's caption is read in its picture's place, though nobody has trusted the notebook."""
    fig, _ = subplots()
    fig.set_label("A curve.")
    html = Picture(partial(print_figure, base64=True)).html(fig)
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", {"text/html": html})]
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    page.goto(address.replace("05_explorer", notebook.stem))
    picture = page.locator('.jp-OutputArea img[alt="A curve."]')
    picture.wait_for()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 100


def pace(explorer: Explorer) -> dict[str, float]:
    """Median milliseconds from a key to the pixels: of eight each."""
    found = {}
    plan = {
        "a new window": ("recent_size", "ArrowLeft"),
        "one that is known": ("recent_size", "ArrowRight"),
    }
    plan |= {"another step": ("step", "ArrowRight"), "another head": ("head", "ArrowRight")}
    for name, (control, key) in plan.items():
        first = explorer.asked + 1
        for _ in range(4 if control == "head" else 8):
            explorer.press(control, key)
        explorer.page.wait_for_timeout(300)
        times = [entry for seq, entry in explorer.times().items() if seq >= first]
        for part in ("first", "all"):
            found[f"{name}: {part} picture"] = statistics.median(
                x[part] for x in times if part in x
            )
    return found
