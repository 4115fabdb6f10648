"""Progress bars: a widget in JupyterLab, text at a terminal, none in a headless run."""

import os
import sys

from tqdm.auto import tqdm


def progress(iterable=None, **kwargs) -> tqdm:
    """tqdm, shown only where someone is looking; keywords are tqdm's (`desc`, `total`, `unit`)."""
    return tqdm(iterable, **kwargs | {"disable": kwargs.get("disable") or not _watched()})


def _watched() -> bool:
    if "KVLAB_NOTEBOOK" in os.environ:  # a headless run: `lib/run/staging.py`
        return False
    return _in_notebook() or sys.stderr.isatty()


def _in_notebook() -> bool:
    """Whether this is the kernel of an open notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
