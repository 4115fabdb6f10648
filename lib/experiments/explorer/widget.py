"""The explorer: what happens when a control is moved or a button is pressed.

The kernel answers every change with what it knows, and a `Worker` computes the rest behind it.
"""

import weakref
from collections.abc import Iterator

from lib.load.models import load_model

from . import views, writing
from .page import OF_STEP, OF_TEXT, Page, machine
from .session import Session
from .setting import Setting, fit, lines_of
from .text import TYPED, text_errors, text_tokens
from .worker import Worker, together

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
        if action == "pin" and (curve := self.curves.get("chosen")):
            self._pin(curve)
        elif action == "unpin":
            self._show(pins=[])
        elif action == "write" and not self._loading() and not self._errors():
            self._worker.ask(self._write)
        elif action == "stop":
            self._stopped = True
            if self._loading():  # at once: a model may take minutes, and is dropped when it comes
                self._adjust(**dict(zip(OF_TEXT, self._loaded, strict=True)))
                errors = self._errors()
                self._show(errors=errors)
                if not errors and self._begun_with != self.setting:
                    self._show_known()
                self._rest()
            self._worker.ask(self._stop)

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
        with self._at_once():
            if self._refused():
                return self._worker.ask(self._stop)
            self._show_known()
            label = self.setting.label
            total = len(self._session.tokens) - 1  # told at once: a bar without an end moves
            state = ("done", self._moved) if self._whole() else ("computing", label, 0, total)
            self._status(*state, seq=self.controls.get("seq"))
            return self._worker.ask(self._compute)

    def _show_known(self) -> None:
        """What is known of the setting takes the place of what is shown."""
        self._begun_with = self.setting
        self._show_lines(self.setting)
        self._show_step()

    def _turn_to_step(self) -> None:
        """Look elsewhere; lines that were stopped stay so, those that were refused begin anew."""
        failed = self.status["state"] == "failed"
        if self._loading() or failed or self._begun_with != self.setting:
            return self._begin()
        if not self._refused():
            with self._at_once():
                if self.status["state"] == "done":
                    self._status("done", "")
                self._show_step(seq=self.controls.get("seq"))
            self._worker.look(self._look)

    def _compute(self) -> Iterator[None]:
        """The lines that are not known, growing; the look as soon as its step has been read."""
        self._answering, setting = self.controls.get("seq"), self.setting
        session, lines = self._session, lines_of(setting)
        step = None if self._errors() else self.controls["step"]
        unknown = session.unknown(lines)
        self.begun += unknown.values()
        runs = {name: session.compute(line, step) for name, line in unknown.items()}
        for found in together(runs, session.threads):
            new = {name: self._curve(lines[name], nll, done) for name, (done, nll) in found.items()}
            self.ended += [lines[x] for x, curve in new.items() if curve["done"] == curve["total"]]
            finished = [line.label for line in self.ended[-50:]]
            told = [next(iter(new.values()))[x] for x in ("label", "done", "total")]
            news = {"curves": self.curves | new, "finished": finished}
            news["ratios"] = views.ratios(self._known(setting))
            self._status("computing", *told, only_for=setting, **news)
            yield from self._look()
            yield
        if unknown:
            self._show_lines(setting)
        yield from self._look()
        session.keep_look(setting, step)

    def _look(self) -> Iterator[None]:
        """What the chosen step attends to, unless that is shown or has not been read yet."""
        self._answering, wanted = self.controls.get("seq"), (self.setting, self.controls["step"])
        if self._errors():  # of the step, layer or head: the lines go on behind them
            return
        if not self._session.can_look(*wanted):
            return
        try:
            for look in self._session.looking(*wanted):
                if look is None:
                    self._status("computing", f"attention at step {wanted[1]:,}")
                    yield
        except ValueError as error:  # of a model that can't be looked at: the lines go on
            return self._show(errors={"layer": " ".join(str(error).split())})
        if not self._errors() and not self._shown_weights():  # typed in the meantime
            self._show_step()

    def _load(self) -> None:
        """Another model or text: in the background, for it may take long."""
        if not self._loading():  # what was mistyped is as it was
            return self._begin()
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
        self._session, self._loaded = session, wanted
        self._show_session()
        fitting, self._moved = fit(self.setting, self.controls, model, len(tokens))
        self._adjust(**fitting)
        self._show(pins=[], curves={}, writing=None, attention=None)
        self._begin()

    def _stop(self) -> Iterator[None]:
        """Leave things as they are."""
        self._answering = self.controls.get("seq")
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
        with self._at_once():
            if self._worker.wanted:  # since a moment ago
                return
            if self.status["state"] in ("computing", "writing", "stopped"):
                self._rest()
            self._show(settled=self._answering)
        if self._kind not in self._machines:
            self._machines[self._kind] = machine(*self._kind)
            if not self._errors():
                self._show_step()
