"""Progress bars: a widget in JupyterLab, text at a terminal, none in a headless run."""

from tqdm.auto import tqdm

from .paths import headless


def progress(iterable=None, **kwargs) -> tqdm:
    """tqdm, shown only where someone is looking; keywords are tqdm's (`desc`, `total`, `unit`)."""
    # None leaves it to tqdm: a bar in an open notebook and at a terminal, none in a pipe
    return tqdm(iterable, **kwargs | {"disable": kwargs.get("disable") or headless() or None})
