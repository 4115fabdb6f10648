"""The explorer: what happens when a control is moved or a button is pressed.

The kernel answers every change with what it knows, and a `Worker` computes the rest behind it.
"""

import weakref
from collections.abc import Iterator

from lib.load.models import load_model

from . import views, writing
from .page import OF_STEP, OF_TEXT, Page, machine
from .session import Session
from .setting import Setting, lines_of
from .text import TYPED, text_errors, text_tokens
from .worker import Worker

LIVE: "weakref.WeakSet[ExplorerWidget]" = weakref.WeakSet()  # one at a time computes


class ExplorerWidget(Page):
    """What JupyterLab, Voila and VS Code show of a `Session`; `notebook` is for the papermill line.

    `where` is what the other controls begin with: model, text, typed, offset, seq_len; step, layer
    and head.
    `controls` may be set from Python as well as on the page, all or `set` some; `views` is what is
    shown. A setting that is overtaken by a newer one is dropped at its next chunk.
    """

    def __init__(self, session: Session, setting: Setting, where: dict, notebook: str = ""):
        self._worker = Worker(self._failed, self._when_idle)
        super().__init__(session, setting, where, notebook)
        self._models = {self.controls["model"]: (session.model, session.tokenizer)}
        self._loaded = self._of_text()  # what the session is of
        self._pins: list[dict] = []
        self.begun: list[Setting] = []  # what was computed, and what of it to the end
        self.ended: list[Setting] = []
        self._answering = None  # number of the change that the worker is at
        self._begun_with: Setting | None = None  # what the lines on the page are of
        self._stopped = False  # whether the rest of them was called off
        self._moved = ""  # controls that a shorter text or a smaller model has moved
        self.on_msg(self._on_message)
        self.observe(self._changed, names="controls")
        if self.live:
            for old in list(LIVE):  # the cell was run again
                old.close()
            LIVE.add(self)
            self._begin()

    def close(self) -> None:
        """End what is computed, and the page with it."""
        self._worker.end()
        super().close()

    def wait(self, seconds: float = 60) -> dict:
        """The views when all that was asked for is shown; TimeoutError if that takes longer."""
        if not self._worker.wait(seconds):
            raise TimeoutError(f"still computing after {seconds} s")
        return self.views

    def _changed(self, change) -> None:
        """Controls moved: the newest values are checked, and what is known is shown at once."""
        names = {x for x in change.new if change.new[x] != (change.old or {}).get(x)} - {"seq"}
        if not names or self._adjusting:
            return
        self._moved = ""
        if names & set(OF_TEXT):
            self._load()
        elif names <= set(OF_STEP):
            self._turn_to_step()
        else:
            self._begin()

    def _on_message(self, _, content: dict, buffers) -> None:
        """A button: pin, unpin, write or stop."""
        action = content.get("do")
        if action == "pin" and (curve := self.views.get("curves", {}).get("chosen")):
            self._pin(curve)
        elif action == "unpin":
            self._pins = []
            self._show(pins=[])
        elif action == "write" and not self._loading() and not self._errors():
            self._worker.ask(self._write)
        elif action == "stop":
            self._stopped = True
            if self._loading():  # at once: a model may take minutes, and is dropped when it comes
                self._adjust(**dict(zip(OF_TEXT, self._loaded, strict=True)))
                self._show(errors=self._errors())
                self._rest()
            self._worker.ask(self._stop)

    def _pin(self, curve: dict) -> None:
        """Keep a line beside the others; one that still grows would stay as it is now."""
        if curve["done"] < curve["total"]:
            told = "compare waits till the line is whole"
            return self._show(status=self.views["status"] | {"text": told})
        if curve not in self._pins:
            self._pins = [*self._pins, curve][-4:]
        return self._show(pins=self._pins)

    def _loading(self) -> bool:
        """Whether the controls name another model or text than the session's."""
        return self._of_text() != self._loaded

    def _of_text(self) -> tuple:
        """The model and text that the controls name."""
        return tuple(self.controls[name] for name in OF_TEXT)

    def _begin(self) -> None:
        """Show what is known of a new setting, and compute the rest."""
        if self._loading():  # still, or in vain: not to be overtaken, nor forgotten
            return self._load()
        self._begun_with, self._stopped = None, False
        if self._refused():
            return self._worker.ask(self._stop)
        self._begun_with = setting = self.setting
        lines, known = lines_of(setting), self._known(setting)
        curves = {name: self._curve(lines[name], nll, len(nll)) for name, nll in known.items()}
        self._show(curves=curves, ratios=views.ratios(known), code=self._code(setting))
        self._show_step()
        state = ("done", self._moved) if self._whole() else ("computing", setting.label)
        self._status(*state, seq=self.controls.get("seq"))  # the last of the first answer
        return self._worker.ask(self._compute)

    def _turn_to_step(self) -> None:
        """Look elsewhere; lines that were stopped stay so, those that were refused begin anew."""
        failed = self.views["status"]["state"] == "failed"
        if self._loading() or failed or self._begun_with != self.setting:
            return self._begin()
        if not self._refused():
            self._show_step(seq=self.controls.get("seq"))
            self._worker.look(self._look)

    def _compute(self) -> Iterator[None]:
        """The lines that are not known, growing; the look as soon as its step has been read."""
        self._answering, setting = self.controls.get("seq"), self.setting
        for name, line in lines_of(setting).items():
            known = self._session.store.get(line)
            if known is None:
                self.begun.append(line)
                for done, nll in self._session.compute(line):
                    curve = self._curve(line, nll, done)
                    news = {"only_for": setting, "curves": self.views["curves"] | {name: curve}}
                    self._status("computing", line.label, done, len(nll), **news)
                    if name == "chosen":
                        yield from self._look()
                    yield
                self.ended.append(line)
                ended = [line.label for line in self.ended[-50:]]
                self._show(setting, ratios=views.ratios(self._known(setting)), ended=ended)
            elif name not in self.views["curves"]:  # without sinks, chosen and window are the same
                curve = self._curve(line, known, len(known))
                self._show(setting, curves=self.views["curves"] | {name: curve})
            yield from self._look()

    def _look(self) -> Iterator[None]:
        """What the chosen step attends to, unless that is shown or has not been read yet."""
        self._answering, wanted = self.controls.get("seq"), (self.setting, self.controls["step"])
        if self._errors():  # of the step, layer or head: the lines go on behind them
            return
        if self._session.known_look(*wanted) is None:
            if not self._session.can_look(*wanted):
                return
            for look in self._session.looking(*wanted):
                if look is None:
                    self._status("computing", f"attention at step {wanted[1]:,}")
                    yield
        if not self._errors() and not self._shown_weights():  # typed in the meantime
            self._show_step()

    def _load(self) -> None:
        """Another model or text: in the background, for it may take long."""
        controls = self.controls
        errors = text_errors(*(controls[name] for name in OF_TEXT[1:]))
        self._show(errors=errors)
        seq = controls.get("seq")
        if errors:
            self._show(seq=seq, settled=seq)
        else:
            self._status("loading", f"{controls['model']}, {controls['text']}", seq=seq)
            self._worker.ask(self._reload)

    def _reload(self) -> Iterator[None]:
        self._answering, wanted = self.controls.get("seq"), self._of_text()
        name, *of_text = wanted
        yield
        part = "model"
        try:
            loaded = self._models.get(name) or load_model(name)
            if self.controls["model"] == name:
                self._models = {name: loaded}  # one at a time: they are large
            yield
            model, tokenizer = loaded
            part = "typed" if of_text[0] == TYPED else "text"
            tokens = text_tokens(tokenizer, *of_text, named="length")
            session = Session(model, tokenizer, tokens)
        except (ValueError, OSError) as error:
            if wanted == self._of_text():
                self._show(errors={part: " ".join(str(error).split())}, settled=self._answering)
                self._status("failed", "")
            return
        yield
        if wanted != self._of_text():
            return
        self._session, self._pins, self._loaded = session, [], wanted
        self._show_session()
        layers, heads = self._session.shape
        most = {"step": len(tokens) - 1, "layer": layers - 1, "head": heads - 1}
        sinks = self.setting.budget - self.setting.recent_size
        most["recent_size"] = self._session.limit - sinks - self.controls["buffer"]
        fitting = {x: high for x, high in most.items() if self.controls[x] > high}
        self._adjust(**fitting)
        shown = {"recent_size": "window"}
        moved = (f"{shown.get(x, x)} moved to {to:,}" for x, to in fitting.items())
        self._moved = ", ".join(moved)
        self._show(pins=[], curves={}, writing=None)
        self._begin()

    def _stop(self) -> Iterator[None]:
        """Leave things as they are."""
        self._rest()
        yield from ()

    def _rest(self) -> None:
        """Nothing is computed any more: say whether all is there, and shown."""
        whole = self._begun_with == self.setting and self._whole()
        self._status("done" if whole else "stopped", self._moved if whole else "")

    def _write(self) -> Iterator[None]:
        """Continue the text up to the step, three times, a token each in turn."""
        session, lines = self._session, dict(reversed(lines_of(self.setting).items()))
        prompt = session.tokens[: self.controls["step"] + 1]
        for shown, done in writing.side_by_side(session.model, session.tokenizer, prompt, lines):
            if shown:
                self._show(writing=shown)
                self._status("writing", "the text goes on", done, writing.NEW_TOKENS)
            yield
        if not self._stopped:
            yield from self._compute()  # what writing has overtaken

    def _when_idle(self) -> None:
        """All is shown that was asked for."""
        if self.views["status"]["state"] in ("computing", "writing", "stopped"):
            self._rest()
        self._show(settled=self._answering)
        if self._machine is None:
            self._machine = machine(self._session.model.device, self._session.model.dtype)
            self._show_step()
