"""What the explorer's page shows: traits that `page.js` draws, filled from a session.

Names of controls, and what is told of a step, a curve and a setting; what is computed when is the
widget's matter (`widget.py`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path

import anywidget
import torch
import traitlets

from lib.measure.machine import Machine, measure_machine
from lib.names import display_name
from lib.paths import headless

from . import views
from .session import Session
from .setting import (
    MOST_BUFFER,
    MOST_SINKS,
    OFFERED,
    WITH_SINKS,
    Setting,
    lines_of,
    place_errors,
)
from .text import TYPED

HERE = Path(__file__).parent
OF_TEXT = ("model", "text", "typed", "offset", "seq_len")
OF_SETTING = ("method", "start_size", "recent_size", "buffer", "positions")
OF_STEP = ("step", "layer", "head")
VIEWS = ("curves", "ratios", "cost", "code", "status", "errors", "pins", "finished", "attention")
VIEWS += ("writing", "seq", "settled")
HEADLESS = "*Here the controls stand when the notebook is open in JupyterLab: `make lab`.*"


class Page(anywidget.AnyWidget):
    """The controls' values and the views of a `Session`; `notebook` is for the papermill line."""

    _esm = HERE / "page.js"
    _css = HERE / "page.css"
    controls = traitlets.Dict().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    text = traitlets.Dict().tag(sync=True)
    # the `VIEWS`: each is sent when it has changed, and no other with it
    curves, ratios, cost, code, status, errors = (traitlets.Dict().tag(sync=True) for _ in range(6))
    pins, finished = (traitlets.List().tag(sync=True) for _ in range(2))
    attention, writing = (
        traitlets.Dict(default_value=None, allow_none=True).tag(sync=True) for _ in range(2)
    )
    seq, settled = (traitlets.Int(None, allow_none=True).tag(sync=True) for _ in range(2))

    def __init__(self, session: Session, setting: Setting, where: dict, notebook: str):
        self._lock = threading.RLock()
        self._session, self._notebook = session, notebook
        self._machines: dict[tuple[torch.device, torch.dtype], Machine] = {}
        self._adjusting = False  # whether it is the kernel that moves controls
        self.live = not headless()
        methods = {name: display_name(name) for name in OFFERED}
        super().__init__(
            controls={"seq": 0} | where | asdict(setting),
            choices={
                "methods": methods,
                "with_sinks": WITH_SINKS,
                "most_sinks": MOST_SINKS,
                "most_buffer": MOST_BUFFER,
            },
            status={"state": "computing", "text": ""},
        )
        self._show_session()

    def open(self) -> None:
        """Tell a notebook's page of the widget; none looks where it runs headless."""
        if self.live:
            super().open()

    def _repr_mimebundle_(self, **kwargs):
        """The page; where a notebook runs headless, a sentence in its place."""
        if not self.live:
            return {"text/markdown": HEADLESS, "text/plain": HEADLESS}
        return super()._repr_mimebundle_(**kwargs)

    def set(self, **controls) -> None:
        """Move some of the controls."""
        with self._lock:
            self.controls = self.controls | controls

    def _adjust(self, **controls) -> None:
        """Move some of the controls to what is there, which asks for nothing."""
        self._adjusting = True
        self.set(**controls)
        self._adjusting = False

    @property
    def views(self) -> dict:
        """What is shown, by the names of `VIEWS`."""
        return {name: getattr(self, name) for name in VIEWS}

    @property
    def setting(self) -> Setting:
        """What the controls say now."""
        return Setting(**{name: self.controls[name] for name in OF_SETTING})

    def _show(self, only_for: Setting | None = None, **news) -> None:
        """Put `news` in the views, from either thread; none `only_for` a setting that has gone."""
        with self._at_once():
            if only_for is None or only_for == self.setting:
                for name, value in news.items():
                    setattr(self, name, value)

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Send what the block shows in one message, and nothing of the other thread's between."""
        with self._lock, self.hold_sync():
            yield

    def _show_session(self) -> None:
        layers, heads = self._session.shape
        limit, length = self._session.limit, len(self._session.tokens)
        sizes = {"layers": layers, "heads": heads, "limit": limit, "length": length}
        self.choices = self.choices | sizes
        self.text = {"pieces": self._session.pieces()}

    def _status(self, state: str, text: str, done: int = 0, total: int = 0, **more) -> None:
        self._show(status={"state": state, "text": text, "done": done, "total": total}, **more)

    def _failed(self, error: Exception) -> None:
        """A job ended with an error: said in one sentence."""
        self._status("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _errors(self) -> dict[str, str]:
        """What is wrong with the controls that need no loading, a sentence by control."""
        found = self.setting.errors(self._session.limit)
        place = (self.controls[name] for name in OF_STEP)
        found |= place_errors(self._session.model, len(self._session.tokens), *place)
        return found

    def _refused(self) -> bool:
        """Whether something is wrong, which is then shown, and is all of the answer."""
        errors, seq = self._errors(), self.controls.get("seq")
        self._show(errors=errors, **({"seq": seq, "settled": seq} if errors else {}))
        return bool(errors)

    def _known(self, setting: Setting) -> dict[str, torch.Tensor]:
        """The losses of what is lines_of, as far as they have been computed."""
        known = {name: self._session.store.get(x) for name, x in lines_of(setting).items()}
        return {name: nll for name, nll in known.items() if nll is not None}

    def _whole(self) -> bool:
        """Whether all lines of the setting have been computed, wherever its step may be."""
        setting = self.setting
        known = not setting.errors(self._session.limit) and self._known(setting)
        return bool(known) and len(known) == len(lines_of(setting))

    def _curve(self, line: Setting, nll: torch.Tensor, done: int) -> dict:
        return self._session.curve(line, nll, done) | {"label": line.label}

    def _show_lines(self, setting: Setting) -> None:
        """The lines of a setting that are known."""
        lines, known = lines_of(setting), self._known(setting)
        curves = {name: self._curve(lines[name], nll, len(nll)) for name, nll in known.items()}
        self._show(setting, curves=curves, ratios=views.ratios(known))

    def _pin(self, curve: dict) -> None:
        """Keep a line beside the others; one that still grows would stay as it is now."""
        if curve["done"] < curve["total"]:
            self._show(status=self.status | {"text": "compare waits till the line is whole"})
        elif curve not in self.pins:
            self._show(pins=[*self.pins, curve][-4:])

    def _code(self, setting: Setting) -> dict[str, str]:
        """The setting as a line of Python and as one for a terminal."""
        names = ("model", "text", "offset", "seq_len", *OF_STEP)
        more = {name: self.controls[name] for name in names}
        line = setting.papermill(self._notebook, more)
        if self.controls["text"] == TYPED:
            line = (
                "papermill reads no typed text: save it as a .txt file, and give its path as text"
            )
        return {"python": setting.code(len(self._session.tokens)), "papermill": line}

    @property
    def _kind(self) -> tuple[torch.device, torch.dtype]:
        """What a machine's rates hang on."""
        return self._session.model.device, self._session.model.dtype

    def _shown_weights(self) -> bool:
        """Whether the attention that is shown is that of the controls."""
        shown, controls = self.attention or {}, self.controls
        same = all(shown.get(name) == controls[name] for name in OF_STEP)
        return same and shown.get("weights") is not None and shown["label"] == self.setting.label

    def _show_step(self, **more) -> None:
        """Attention and cost at the step; where nothing is known yet the old ones, marked so."""
        setting, (step, layer, head) = self.setting, (self.controls[x] for x in OF_STEP)
        look = self._session.known_look(setting, step)
        shown = views.attention(setting, step, look, layer, head)
        if shown is None:
            none = views.no_attention(setting, step, layer, head)
            shown = (self.attention or views.for_page(none)) | {"old": True}
        else:
            shown = views.for_page(shown) | {"label": setting.label}
        rates = self._machines.get(self._kind)
        money = views.cost(self._session.model, setting, step, look, rates)
        self._show(attention=shown, cost=money, code=self._code(setting), **more)


@cache
def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """What this machine can read and multiply, measured once."""
    return measure_machine(device, dtype, seconds=0.2)
