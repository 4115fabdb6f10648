"""JupyterLab or Voila with one notebook, and a real browser to look at it."""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.paths import NOTEBOOKS, ROOT, cache_dir

SHOTS = ROOT / "build" / "browser"  # screenshots and times, kept by whoever runs the tests
PATIENCE = 240_000  # ms: machines that run tests are busy
TOKEN = "only-for-this-test"
SAYS = "there is no Chromium (KVLAB_CHROMIUM, or chromium on the PATH): not tried in a browser"


def chromium() -> str | None:
    """Path of a Chromium that Playwright can drive."""
    given = os.environ.get("KVLAB_CHROMIUM")
    return given or shutil.which("chromium") or shutil.which("google-chrome")


needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not chromium() and os.environ.get("KVLAB_BROWSER") != "required", reason=SAYS
    ),
]


@contextmanager
def alone() -> Iterator[None]:
    """One browser at a time, whatever runs beside this test."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    with open(SHOTS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[str]:
    """The address of `kind`, "lab" or "voila", which shows a copy of the explorer's notebook.

    Results and losses are kept in `folder`, texts and models come from the machine's cache.
    """
    notebooks, kept, settings = (folder / x for x in ("notebooks", "cache", "settings"))
    for made in (notebooks, kept):
        made.mkdir(parents=True)
    shutil.copy(NOTEBOOKS / "05_explorer.ipynb", notebooks)
    for part in ("text", "tokens", "models"):
        (cache_dir() / part).mkdir(parents=True, exist_ok=True)
        (kept / part).symlink_to(cache_dir() / part)
    ask = settings / "@jupyterlab" / "apputils-extension"
    ask.mkdir(parents=True)
    (ask / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    widgets = settings / "@jupyter-widgets" / "jupyterlab-manager"
    widgets.mkdir(parents=True)  # what `make setup` sets for all notebooks
    (widgets / "plugin.jupyterlab-settings").write_text('{"saveState": true}')
    ours = {name: value for name, value in os.environ.items() if name != "KVLAB_NOTEBOOK"}
    ours |= {"PYTHONPATH": str(ROOT), "KVLAB_CACHE": str(kept)}
    ours |= {"KVLAB_RESULTS": str(folder / "results"), "JUPYTERLAB_SETTINGS_DIR": str(settings)}
    ours["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")  # panels as they are at first
    port = _free_port()
    options = [f"--port={port}", "--no-browser"]
    if kind == "lab":
        options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
        options += ["--ip=127.0.0.1", "--allow-root"]
        command = ["-m", "jupyterlab", *options]
        address = f"http://127.0.0.1:{port}/lab/tree/notebooks/05_explorer.ipynb?token={TOKEN}"
    else:
        options += ["--Voila.ip=127.0.0.1", f"--token={TOKEN}"]
        command = ["-m", "voila", str(notebooks / "05_explorer.ipynb"), *options]
        address = f"http://127.0.0.1:{port}/?token={TOKEN}"
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=ours, stdout=log, stderr=log
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/" + ("api" if kind == "lab" else "static/"), server)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def end_kernels(address: str) -> None:
    """Shut down whatever runs on the JupyterLab at `address`."""
    server, token = address.partition("/lab/")[0], address.partition("?")[2]
    with urllib.request.urlopen(f"{server}/api/sessions?{token}") as answer:
        sessions = json.load(answer)
    for session in sessions:
        path = f"{server}/api/sessions/{session['id']}?{token}"
        urllib.request.urlopen(urllib.request.Request(path, method="DELETE"))


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.2)
    raise TimeoutError(address)


@contextmanager
def browsing(address: str, width: int = 1280, height: int = 720):
    """A page of the browser, at `address`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = chromium()
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        try:
            yield page
        finally:
            browser.close()


class Explorer:
    """What a visitor does with the explorer on a page."""

    def __init__(self, page):
        self.page = page
        page.wait_for_selector('.kvx[data-state="done"]')
        self.root = page.locator(".kvx")
        self.root.evaluate("root => root.scrollIntoView()")

    def run_all(page) -> "Explorer":
        """Run all cells of a notebook in JupyterLab."""
        begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]"))
        asked = page.locator(".jp-Dialog .jp-mod-accept")  # which kernel, where it is still to come
        idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        for _ in range(10):
            page.wait_for_selector(idle, state="attached")  # a narrow toolbar folds it away
            page.click('text="Run"')
            page.click('text="Run All Cells"')
            page.wait_for_timeout(3000)
            if asked.count():
                asked.click()
                page.wait_for_timeout(3000)
            if begun.count():
                return Explorer(page)
        raise TimeoutError("no cell was run")

    def slider(self, name: str):
        return self.root.locator(f"input[type=range][data-control={name}]")

    def box(self, name: str):
        return self.root.locator(f"input:not([type=range])[data-control={name}]")

    def press(self, name: str, key: str, times: int = 1, settle: bool = True) -> None:
        """Move a slider by the keyboard."""
        slider = self.slider(name)
        slider.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        if settle:
            self.settle()

    def type(self, name: str, value: str) -> None:
        """Type a value into the box of a control."""
        box = self.box(name)
        box.select_text()
        self.page.keyboard.type(value)
        self.page.keyboard.press("Enter")

    @property
    def asked(self) -> int:
        """Number of the last change: a key at the end of a slider makes none."""
        return int(self.root.get_attribute("data-asked"))

    def settle(self) -> None:
        """Wait till all is shown that was asked for."""
        script = "n => Number(document.querySelector('.kvx').dataset.settled) >= n"
        self.page.wait_for_function(script, arg=self.asked)

    def ppl(self, name: str) -> float:
        """The perplexity that is shown for a line."""
        text = self.root.locator(f"[data-line-of={name}] b").inner_text()
        return float(text.split(" ")[0])

    def strip(self) -> str:
        """The first tokens, as they are marked."""
        return self.root.locator(".strip.first").inner_html()

    def times(self) -> dict[int, dict]:
        """Milliseconds from each change to its first picture and to the whole one."""
        return {entry["seq"]: entry for entry in self.root.evaluate("root => root.kvxTimes")}

    def shot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"{name}.png")
