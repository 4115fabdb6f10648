"""How long a kernel's main thread takes to answer while something else goes on."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from browser import Explorer
from jupyter_client import BlockingKernelClient


def longest_wait(explorer: Explorer) -> float:
    """Milliseconds that the kernel did not answer for, while a real model was loaded and read."""
    with echoes() as waits:
        explorer.type("model", "smollm2")
        explorer.page.wait_for_selector('.kvx[data-state="computing"] progress[value]')
        explorer.page.wait_for_timeout(5000)
    explorer.page.keyboard.press("Escape")
    explorer.page.wait_for_selector('.kvx[data-state="stopped"]')
    explorer.type("model", "reference")
    explorer.settle()
    return 1000 * max(waits)


@contextmanager
def echoes() -> Iterator[list[float]]:
    """Seconds of each answer of the kernel that was started: asked again and again in the block."""
    started = [one.cmdline() for one in psutil.Process().children(recursive=True)]
    (kernel,) = [line for line in started if any("ipykernel_launcher" in part for part in line)]
    client = BlockingKernelClient(connection_file=kernel[kernel.index("-f") + 1])
    client.load_connection_file()
    client.start_channels()
    waits, over = [], threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            began = time.perf_counter()
            client.kernel_info(reply=True, timeout=120)
            waits.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield waits
    finally:
        over.set()
        asking.join()
        client.stop_channels()
