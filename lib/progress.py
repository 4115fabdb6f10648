"""Progress bars: a widget in JupyterLab, text at a terminal, none in a headless run."""

import os

from tqdm.auto import tqdm


def progress(iterable=None, **kwargs) -> tqdm:
    """tqdm, shown only where someone is looking; keywords are tqdm's (`desc`, `total`, `unit`)."""
    headless = "KVLAB_NOTEBOOK" in os.environ  # `lib/run/staging.py`
    # None leaves it to tqdm: a bar in an open notebook and at a terminal, none in a pipe
    return tqdm(iterable, **kwargs | {"disable": kwargs.get("disable") or headless or None})
