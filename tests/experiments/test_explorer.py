"""The explorer without a browser: a control is set, and the data of each view is looked at."""

import math
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from reference import cached_model, tiny_ids

import lib
from lib import RecentOnly, StreamingLLM, evaluate, generate, load_tokenizer
from lib.experiments.explorer import figure, views, widget, writing
from lib.experiments.explorer.reading import Reading
from lib.experiments.explorer.session import Session
from lib.experiments.explorer.setting import OFFERED, Setting, fit, refuse
from lib.experiments.explorer.text import text_errors, text_tokens
from lib.experiments.explorer.widget import ExplorerWidget
from lib.experiments.explorer.worker import Worker, together
from lib.measure.limits import decoding_work
from lib.measure.machine import Machine
from lib.measure.rows import at_budget
from lib.measure.stats import log_edges, mean_ci
from lib.plots import use_style

IDS = tiny_ids(300)
MACHINE = Machine(bandwidth=1e9, gemm=1e10)
SETTING = Setting("streaming", 4, 28)
WHERE = {"model": "tiny", "text": "docs", "typed": "", "offset": 0, "seq_len": 300}
WHERE |= {"step": 200, "layer": 1, "head": 0}


class Letters:
    """A tokenizer of one letter a token."""

    bos_token_id = 0

    def __call__(self, text, **kwargs):
        return type("Ids", (), {"input_ids": [ord(letter) % 61 for letter in text]})

    def convert_ids_to_tokens(self, ids):
        return [chr(65 + token % 26) for token in ids]

    def convert_tokens_to_string(self, words):
        return "".join(words)

    def decode(self, ids):
        return "".join(self.convert_ids_to_tokens(list(map(int, ids))))


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path))
    return Session(cached_model("neox_25", torch.float32), Letters(), IDS)


@pytest.fixture
def page(session, monkeypatch):
    monkeypatch.delenv("KVLAB_NOTEBOOK", raising=False)
    monkeypatch.setattr(widget, "machine", lambda *_: MACHINE)
    page = ExplorerWidget(session, SETTING, WHERE, "notebooks/some.ipynb")
    page.wait()
    return page


def held(page):
    """Behind the first chunk it has shown the worker waits: events, that it does and may go on."""
    there, go, compute = threading.Event(), threading.Event(), page._session.compute

    def slow(*wanted):
        for result in compute(*wanted):
            yield result
            there.set()
            go.wait(10)

    page._session.compute = slow
    return there, go


def test_the_first_views(page, session):
    shown = page.wait()
    assert {name: curve["label"] for name, curve in shown["curves"].items()} == {
        "dense": "dense",
        "window": "window 32",
        "chosen": "sinks + window 4 + 28",
    }
    nll = evaluate(session.model, IDS, StreamingLLM(4, 28)).nll
    base = evaluate(session.model, IDS, RecentOnly(32)).nll
    chosen, parts = shown["curves"]["chosen"], nll[:288].reshape(16, 18).mean(1)
    assert chosen["ppl"] == pytest.approx([math.exp(x) for x in mean_ci(parts)], rel=1e-3)
    difference = (nll - base)[:288].reshape(16, 18).mean(1)
    expected = [math.exp(x) for x in mean_ci(difference)]
    assert shown["ratios"]["window"] == pytest.approx(expected, rel=1e-3)
    low, high = log_edges(16, 299)[:2]
    assert chosen["y"][0] == pytest.approx(nll[low:high].mean().item(), rel=1e-3)
    attention = shown["attention"]
    assert attention["tokens"] == [0, 1, 2, 3, *range(172, 201)]
    assert sum(attention["weights"]) == pytest.approx(1, abs=1e-3)
    assert len(attention["shares"]) == 2
    work = decoding_work(session.model, 32)
    assert shown["cost"]["chosen"]["tokens"] == 32
    assert shown["cost"]["dense"]["tokens"] == 200
    assert shown["cost"]["chosen"]["bytes"] == pytest.approx(work.cache_bytes * 32 / 33)
    pace = 1 / max(work.bytes / 1e9, work.flops / 1e10)
    assert shown["cost"]["chosen"]["tokens_per_s"] == pytest.approx(pace, rel=0.01)
    assert "".join(page.text["pieces"]) == Letters().decode(IDS)


def test_the_first_view_of_a_method_without_a_rule_has_its_place(session, monkeypatch):
    monkeypatch.delenv("KVLAB_NOTEBOOK", raising=False)
    monkeypatch.setattr(widget, "machine", lambda *_: MACHINE)
    monkeypatch.setattr(widget.Worker, "ask", lambda *_: None)  # nothing is computed yet
    shown = ExplorerWidget(session, Setting("tova", 0, 28), WHERE).views["attention"]
    assert shown.pop("old")
    assert shown == {
        **{"step": 200, "layer": 1, "head": 0, "sinks": 0, "first": 4},
        **{"tokens": [], "weights": None, "shares": None, "seen": 0},
    }


def test_a_moved_slider_changes_what_depends_on_it(page, session):
    before = page.views
    page.set(start_size=0)
    shown = page.wait()
    nll = evaluate(session.model, IDS, RecentOnly(28)).nll
    assert shown["curves"]["chosen"]["ppl"][0] == pytest.approx(nll[:288].mean().exp().item(), 1e-3)
    assert shown["curves"]["dense"] == before["curves"]["dense"]
    assert shown["attention"]["tokens"] == list(range(172, 201))
    assert page.begun.count(Setting("recent_only", 0, 28)) == 0  # the same as the chosen one
    assert shown["curves"]["window"]["ppl"] == shown["curves"]["chosen"]["ppl"]
    assert shown["status"]["state"] == "done"
    ppl = shown["curves"]["chosen"]["ppl"]
    page.set(step=100, head=1, layer=0)
    shown = page.wait()
    assert shown["curves"]["chosen"]["ppl"] == ppl
    assert [shown["attention"][x] for x in ("step", "layer", "head")] == [100, 0, 1]
    assert shown["attention"]["tokens"] == list(range(72, 101))
    assert shown["attention"]["weights"] is not None


def test_a_change_counts_as_answered_with_its_picture(page):
    seen = []
    page.observe(lambda _: seen.append(page.views), names="seq")
    page.set(recent_size=20)
    page.wait()
    changes = [{"recent_size": 28}, {"step": 100}, {"recent_size": 20, "step": 150}]
    for seq, controls in enumerate(changes, 1):
        page.set(seq=seq, **controls)
        page.wait()
        first = next(x for x in seen if x.get("seq") == seq)
        step, size = page.controls["step"], page.controls["recent_size"]
        assert first["attention"]["tokens"] == [0, 1, 2, 3, *range(step - size, step + 1)]
        assert first["curves"]["chosen"]["label"] == f"sinks + window 4 + {size}"
        assert first["errors"] == {}
    page.set(seq=4, layer=7)
    assert (page.views["seq"], page.views["settled"]) == (4, 4)


def test_only_the_newest_of_quick_moves_is_computed(page):
    page.begun.clear()
    page.ended.clear()
    gate, compute = threading.Event(), page._session.compute

    def slow(*wanted):  # the worker is held at its first chunk till all moves are made
        for result in compute(*wanted):
            gate.wait(10)
            yield result

    page._session.compute = slow
    for size in (40, 41, 42, 43, 44):
        page.set(recent_size=size)
    gate.set()
    shown = page.wait()
    sizes = [setting.recent_size for setting in page.ended if setting.method == "streaming"]
    assert sizes == [44]
    # the worker may have begun another one before the newest came
    assert sum(setting.method == "streaming" for setting in page.begun) <= 2
    assert shown["curves"]["chosen"]["label"] == "sinks + window 4 + 44"


def test_a_second_visit_computes_nothing(page, session):
    page.set(recent_size=20)
    page.wait()
    page.set(recent_size=28)
    page.wait()
    page.begun.clear()
    page.set(recent_size=20)
    assert page.views["curves"].keys() == {"dense", "window", "chosen"}  # at once
    page.wait()
    again = Session(session.model, Letters(), IDS)  # another session: from disk
    assert torch.equal(again.store.get(SETTING), session.store.get(SETTING))
    other = Session(cached_model("llama", torch.float32), Letters(), IDS)
    assert other.store.get(SETTING) is None
    assert page.begun == []


def test_the_look_of_a_second_visit_is_there_at_once(page, session):
    again = Session(session.model, Letters(), IDS)
    kept, look = again.known_look(SETTING, 200), session.look(SETTING, 200)
    for own, other in ((kept.tokens, look.tokens), (kept.weights, look.weights)):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert again.known_look(SETTING, 199) is None
    assert Session(session.model, Letters(), IDS[1:]).known_look(SETTING, 200) is None


def test_only_what_has_changed_is_sent(page, monkeypatch):
    sent = []
    monkeypatch.setattr(page, "_send", lambda message, buffers=None: sent.append(message["state"]))
    page.set(head=1, seq=1)
    page.wait()
    assert [set(state) for state in sent] == [
        {"controls"},
        {"attention", "code", "seq"},
        {"settled"},
    ]
    sent.clear()
    page.set(recent_size=20, seq=2)
    page.wait()
    first = {"curves", "ratios", "attention", "cost", "code", "status", "seq"}
    assert set(sent[1]) == first  # in one message
    assert not any("pins" in state or "writing" in state for state in sent)


def test_a_page_gets_no_more_bars_than_it_can_draw():
    weights = [0.5, *([0.0] * 9998), 0.25]
    found = {"step": 9999, "tokens": [*range(10_000)], "weights": weights}
    shown = views.for_page(found)
    bars = shown["bars"]
    assert shown["seen"] == 10_000
    assert len(bars["tokens"]) == len(bars["weights"]) <= views.MOST_BARS
    assert bars["tokens"][:17] == [*range(17)]  # sinks have bars of their own
    assert (bars["weights"][0], bars["weights"][-1], sum(bars["weights"])) == (0.5, 0.25, 0.75)
    assert shown["tokens"] == [*range(16), *range(9099, 10_000)]
    assert (shown["weights"][0], shown["weights"][-1], len(shown["weights"])) == (0.5, 0.25, 917)
    assert views.for_page(found | {"weights": None})["bars"]["weights"] is None
    few = {"step": 99, "tokens": [*range(100)], "weights": weights[:100]}
    assert views.for_page(few) == few | {"seen": 100}


def test_rates_are_those_of_the_model_s_numbers(page, monkeypatch):
    asked = []
    monkeypatch.setattr(widget, "machine", lambda *kind: asked.append(kind) or Machine(1e8, 1e9))
    doubled = cached_model("llama", torch.float64), Letters()
    monkeypatch.setattr(widget, "load_model", lambda _: doubled)
    monkeypatch.setattr(widget, "text_tokens", lambda *_, **__: IDS)
    before = page.views["cost"]["dense"]["tokens_per_s"]
    page.set(model="double")
    assert page.wait()["cost"]["dense"]["tokens_per_s"] < before
    page.set(step=199)
    page.wait()
    assert asked == [(torch.device("cpu"), torch.float64)]


@pytest.mark.parametrize(
    ("controls", "control", "said"),
    [
        ({"recent_size": 61}, "recent_size", "61 + 4 sinks + 0 of buffer are more than"),
        ({"recent_size": 5000}, "recent_size", "window = 5000: allowed is 16 to 64 tokens"),
        ({"start_size": 0, "recent_size": 0}, "recent_size", "window = 0: allowed is 16 to 64"),
        ({"start_size": 17}, "start_size", "sinks = 17: allowed is 0 to 16 tokens"),
        ({"buffer": -1}, "buffer", "buffer = -1"),
        ({"method": "lagkv", "recent_size": 3}, "recent_size", "window = 3"),
        ({"method": "l2_ratio_0.8", "buffer": 3}, "buffer", "allowed is 0"),
        ({"step": 300}, "step", "step = 300: allowed is 0 to 299"),
        ({"layer": 2}, "layer", "layer = 2: allowed is 0 to 1"),
        ({"text": "typed"}, "typed", "the typed text is empty"),
        ({"text": "typed", "typed": "short"}, "typed", "'5 tokens': allowed is 64 to 65,536"),
        ({"text": "no/such.txt"}, "text", "no such file"),
        ({"seq_len": 70_000}, "seq_len", "length = 70000: allowed is 64 to 65,536"),
        ({"model": "no-model"}, "model", "no such local folder"),
    ],
)
def test_bad_input_is_a_sentence_beside_its_control(page, controls, control, said):
    before = page.views["curves"]
    page.set(**controls)
    shown = page.wait()
    assert list(shown["errors"]) == [control]
    assert said in shown["errors"][control]
    assert "\n" not in shown["errors"][control]
    assert shown["curves"] == before
    page.set(**{name: ({**WHERE, **vars(SETTING)})[name] for name in controls})
    assert page.wait()["errors"] == {}


def test_another_text(page):
    page.set(text="typed", typed="the quick brown fox jumps over the lazy dog. " * 4, step=150)
    shown = page.wait()
    assert shown["errors"] == {}
    assert page.choices["length"] == 180
    assert shown["curves"]["dense"]["total"] == 179
    assert "save it as a .txt file" in shown["code"]["papermill"]
    page.set(typed="the quick brown fox jumps over the lazy dog. " * 2)
    shown = page.wait()
    assert page.controls["step"] == 89  # the last token of what is left
    assert shown["status"]["text"] == "step moved to 89"
    page.set(step=88)
    assert page.wait()["status"]["text"] == ""


def test_a_text_that_was_mistyped_and_is_restored_loses_nothing(page):
    page._on_message(page, {"do": "pin"}, [])
    pins, curves = page.pins, page.curves
    page.set(seq_len=3)
    assert page.wait()["errors"]
    page.set(seq_len=WHERE["seq_len"])
    page.wait()
    assert (page.pins, page.curves, page.errors) == (pins, curves, {})
    assert page.status["state"] == "done"


def test_another_model_s_attention_is_not_shown(page, monkeypatch):
    shown = []
    page.observe(lambda change: shown.append(change.new), names="attention")
    monkeypatch.setattr(widget, "load_model", lambda _: (cached_model("llama"), Letters()))
    monkeypatch.setattr(widget, "text_tokens", lambda *_, **__: IDS)
    page.set(model="other")
    page.wait()
    assert shown[0] is None
    assert len(shown[-1]["shares"]) == 2


def test_lines_go_on_where_attention_can_t_be_looked_at(page, monkeypatch):
    def refused(self, step):
        raise ValueError("model='Falcon': allowed is one to look at")
        yield

    monkeypatch.setattr(Reading, "look", refused)
    page.set(recent_size=20)
    views = page.wait()
    assert views["errors"] == {"layer": "model='Falcon': allowed is one to look at"}
    assert views["status"]["state"] == "done"
    assert all(line["done"] == line["total"] for line in views["curves"].values())


@pytest.mark.parametrize(("buffer", "window"), [(0, 60), (50, 60), (512, 512)])
def test_what_a_smaller_model_moves_is_allowed_there(buffer, window):
    model = cached_model("neox_25")  # of 64 tokens
    setting = Setting("streaming", 4, window, buffer)
    controls = asdict(setting) | {"step": 90, "layer": 9, "head": 9}
    moved, words = fit(setting, controls, model, 50)
    sizes = {x: moved[x] for x in ("recent_size", "buffer") if x in moved}
    refuse(replace(setting, **sizes), model, 50, 49, 1, 1)
    assert {"step": 49, "layer": 1, "head": 1}.items() <= moved.items()
    assert "step moved to 49" in words


def test_a_new_explorer_has_its_threads_though_an_old_one_shares_them(page):
    before = torch.get_num_threads()
    try:
        turn = threading.Thread(target=torch.set_num_threads, args=(1,))  # as in a turn
        turn.start()
        turn.join()
        jobs, found = Worker(print, lambda: None), []

        def job():
            found.append(torch.get_num_threads())
            yield

        jobs.ask(job)
        assert jobs.wait(10)
        assert found == [before]
    finally:
        torch.set_num_threads(before)


def test_pinned_settings_stay(page):
    pinned = page.views["curves"]["chosen"]
    page._on_message(page, {"do": "pin"}, [])
    page.set(recent_size=20)
    assert page.wait()["pins"] == [pinned]
    page._on_message(page, {"do": "unpin"}, [])
    assert page.wait()["pins"] == []


def test_a_setting_is_pinned_once(page):
    for size in (28, 20, 28):
        page.set(recent_size=size)
        page.wait()
        page._on_message(page, {"do": "pin"}, [])
    labels = [curve["label"] for curve in page.views["pins"]]
    assert labels == ["sinks + window 4 + 28", "sinks + window 4 + 20"]


def test_a_line_that_grows_is_not_pinned(page):
    there, go = held(page)
    page.set(method="tova")
    assert there.wait(10)
    page._on_message(page, {"do": "pin"}, [])
    assert page.views["pins"] == []
    assert page.views["status"]["text"] == "compare waits till the line is whole"
    go.set()
    curve = page.wait()["curves"]["chosen"]
    page._on_message(page, {"do": "pin"}, [])
    assert page.wait()["pins"] == [curve]
    assert curve["done"] == 299


def test_writing_is_what_generate_writes(page, session):
    lines = [Setting("baseline", 0, 0), SETTING, Setting("tova", 0, 64)]
    ids = [[], [], []]
    for place, token in writing.write(session.model, IDS[:64], lines, 20):
        ids[place] += [] if token is None else [token]
    for own, line in zip(ids, lines, strict=True):
        assert own == generate(session.model, IDS[:64], line.compressor(), 20).tokens.tolist()
    page._on_message(page, {"do": "write"}, [])
    columns = page.wait()["writing"]["columns"]
    assert {name: len(column["text"]) for name, column in columns.items()} == {
        "dense": writing.NEW_TOKENS,
        "window": writing.NEW_TOKENS,
        "chosen": writing.NEW_TOKENS,
    }
    assert page.views["writing"]["done"] == page.views["writing"]["total"] == writing.NEW_TOKENS


def test_writing_that_is_overtaken_says_that_it_is_unfinished(page, monkeypatch):
    def moves(*given):
        for shown, done in side_by_side(*given):
            if done == 2 and shown:
                page.set(recent_size=20)
            yield shown, done

    side_by_side = writing.side_by_side
    monkeypatch.setattr(writing, "side_by_side", moves)
    page._on_message(page, {"do": "write"}, [])
    shown = page.wait()
    assert shown["status"]["state"] == "done"
    columns = shown["writing"]["columns"].values()
    assert {len(column["text"]) for column in columns} == {shown["writing"]["done"]} == {2}
    assert shown["writing"]["total"] == writing.NEW_TOKENS


def test_stopping(page):
    began, compute = threading.Event(), page._session.compute

    def endless(*wanted):
        while True:
            began.set()
            yield next(compute(*wanted))

    page._session.compute = endless
    page.set(recent_size=20)
    assert began.wait(10)
    page._on_message(page, {"do": "stop"}, [])
    assert page.wait()["status"]["state"] == "stopped"


@pytest.mark.parametrize("wrong", [{"layer": 99}, {"step": 9999}, {"head": 99}])
def test_a_wrong_value_while_lines_grow_ends_nothing(page, wrong):
    there, go = held(page)
    page.set(method="tova")
    assert there.wait(10)
    page.set(**wrong)
    go.set()
    shown = page.wait()
    assert list(shown["errors"]) == list(wrong)
    assert shown["status"]["state"] == "done"
    page.set(**{name: WHERE[name] for name in wrong})
    shown = page.wait()
    assert shown["status"]["state"] == "done"
    assert [shown["curves"][x]["done"] for x in ("chosen", "window", "dense")] == [299] * 3
    assert shown["curves"]["window"]["label"] == "window 28"
    assert shown["attention"]["label"] == shown["curves"]["chosen"]["label"]
    assert shown["attention"]["weights"] is not None


def test_a_layer_that_goes_wrong_during_a_look_is_no_failure(page, monkeypatch):
    look = page._session.looking

    def slow(*wanted):
        for found in look(*wanted):
            yield found
            page.controls = page.controls | {"layer": 99}

    monkeypatch.setattr(page._session, "looking", slow)
    page.set(step=150)
    assert page.wait()["errors"].keys() == {"layer"}
    assert page.views["status"]["state"] == "done"


def test_a_setting_that_came_with_a_wrong_layer_is_shown_when_that_is_right(page):
    page.set(recent_size=20)
    page.wait()
    page.set(recent_size=28)
    page.wait()
    for recent_size in (24, 20):  # a new one, and one that is known
        page.set(layer=99)
        page.set(recent_size=recent_size)
        page.wait()
        page.set(layer=0)
        shown = page.wait()
        assert shown["curves"]["chosen"]["label"] == f"sinks + window 4 + {recent_size}"
        assert shown["curves"]["window"]["label"] == f"window {recent_size + 4}"
        assert shown["status"]["state"] == "done"


def test_what_was_stopped_stays_so_when_the_step_moves(page, monkeypatch):
    monkeypatch.setattr(writing, "NEW_TOKENS", 5)
    there, go = held(page)
    page.set(method="tova")
    assert there.wait(10)
    page._on_message(page, {"do": "stop"}, [])
    go.set()
    assert page.wait()["status"]["state"] == "stopped"
    page.begun.clear()
    page.set(step=100)
    shown = page.wait()
    assert shown["attention"]["step"] == 100
    assert shown["attention"]["weights"] is not None
    page._on_message(page, {"do": "write"}, [])
    shown = page.wait()
    assert shown["writing"] is not None
    assert shown["status"]["state"] == "stopped"
    assert page.begun == []
    page.set(buffer=1)  # another setting is computed
    assert page.wait()["status"]["state"] == "done"


@pytest.mark.parametrize("again", [True, False])
def test_an_explorer_ends_when_it_is_closed_or_made_again(page, session, again):
    there, go = held(page)
    page.set(method="tova")
    assert there.wait(10)
    new = ExplorerWidget(session, SETTING, WHERE) if again else page.close()
    go.set()
    page._worker._thread.join(10)
    assert not page._worker._thread.is_alive()
    assert Setting("tova", 4, 28) not in page.ended
    page.set(step=100)  # asks for nothing
    page.wait(1)
    if again:
        assert new.wait()["status"]["state"] == "done"


def test_a_load_that_is_stopped_is_taken_back(page):
    before = page.controls["text"], page.choices["length"]
    page.set(text="no such file.txt")
    shown = page.wait()
    assert "no such file.txt" in shown["errors"]["text"]
    page.set(recent_size=20)  # does not make it forgotten
    assert "no such file.txt" in page.wait()["errors"]["text"]
    page._on_message(page, {"do": "stop"}, [])
    shown = page.wait()
    assert (page.controls["text"], page.choices["length"], shown["errors"]) == (*before, {})
    page.set(recent_size=24)
    assert page.wait()["curves"]["chosen"]["label"] == "sinks + window 4 + 24"
    assert page.views["status"]["state"] == "done"


@pytest.mark.parametrize("fails", [False, True])
def test_a_load_that_is_stopped_is_taken_back_before_it_ends(page, session, monkeypatch, fails):
    there, go = threading.Event(), threading.Event()

    def slow(name):
        there.set()
        go.wait(10)
        if fails:
            raise OSError("no such model")
        return cached_model("llama", torch.float32), Letters()

    monkeypatch.setattr(widget, "load_model", slow)
    page.set(model="large")
    assert there.wait(10)
    page.set(recent_size=24)  # not shown, so not ready
    page._on_message(page, {"do": "stop"}, [])
    assert (page.controls["model"], page.views["status"]["state"]) == ("tiny", "stopped")
    page.set(recent_size=28, model="large")
    page._on_message(page, {"do": "stop"}, [])
    assert (page.controls["model"], page.views["status"]["state"]) == ("tiny", "done")
    page.set(recent_size=20)  # what is there is explored meanwhile
    assert page.views["attention"]["tokens"] == [0, 1, 2, 3, *range(180, 201)]
    go.set()
    shown = page.wait()
    assert (shown["errors"], shown["status"]["state"]) == ({}, "done")
    assert shown["curves"]["chosen"]["label"] == "sinks + window 4 + 20"
    assert page._session is session
    assert list(page._models) == ["tiny"]


@pytest.mark.parametrize("known", [False, True])
def test_a_stop_says_ready_only_for_lines_that_are_shown(page, monkeypatch, known):
    """A window is moved while a model is loaded, which is then stopped."""
    if known:
        page.set(recent_size=24)
        page.wait()
        page.set(recent_size=28)
        page.wait()
    there, go = threading.Event(), threading.Event()

    def slow(name):
        there.set()
        go.wait(10)
        return cached_model("llama", torch.float32), Letters()

    monkeypatch.setattr(widget, "load_model", slow)
    page.set(model="large", seq=1)
    assert there.wait(10)
    page.set(recent_size=24, seq=2)
    page._on_message(page, {"do": "stop"}, [])
    go.set()
    shown = page.wait()
    assert (page.controls["model"], shown["settled"]) == ("tiny", 2)
    assert shown["status"]["state"] == ("done" if known else "stopped")
    labels = {name: curve["label"] for name, curve in shown["curves"].items()}
    expected = {"dense": "dense", "window": "window 28", "chosen": "sinks + window 4 + 24"}
    assert labels == (expected if known else {"dense": "dense"})
    page.set(step=100)  # what was stopped stays so
    assert page.wait()["status"]["state"] == ("done" if known else "stopped")


def test_what_writing_overtakes_is_computed_behind_it(page):
    gate, compute = threading.Event(), page._session.compute

    def slow(*wanted):
        for result in compute(*wanted):
            gate.wait(10)
            yield result

    page._session.compute = slow
    page.set(recent_size=40)
    page._on_message(page, {"do": "write"}, [])
    gate.set()
    shown = page.wait()
    assert shown["writing"]["columns"].keys() == {"dense", "window", "chosen"}
    curves = shown["curves"]
    assert {name: curve["done"] for name, curve in curves.items()} == dict.fromkeys(curves, 299)
    assert len(curves) == 3
    assert shown["status"]["state"] == "done"


def test_letters_of_several_tokens_are_whole():
    tokenizer = load_tokenizer("reference")
    text = "naïve – 語 and 🙂, plain\n  words"
    tokens = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    found = views.pieces(tokenizer, tokens)
    assert len(found) == len(tokens)
    assert "".join(found) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    broken = views.pieces(tokenizer, tokens[: [*found].index("🙂")])  # in the middle of the letter
    assert "".join(broken).startswith("naïve – 語 and ")


@pytest.mark.parametrize("method", OFFERED)
def test_the_line_of_code_gives_the_perplexity_that_is_shown(session, method):
    setting = Setting(method, 2, 30, 0, "original")
    names = {name: getattr(lib, name) for name in lib.__all__}
    names |= {"model": session.model, "tokens": IDS, "at_budget": at_budget}
    ppl = eval(setting.code(len(IDS)), names)
    assert ppl == pytest.approx(views.curve(session.nll(setting), 299)["ppl"][0], rel=1e-4)
    assert "tokens[:289]" in setting.code(len(IDS))  # 16 stretches of 18
    assert "tokens[" not in setting.code(289)


@pytest.mark.parametrize("method", OFFERED)
@pytest.mark.parametrize("start_size", [0, 3])
def test_settings_with_one_key_have_one_method(method, start_size):
    setting = Setting(method, start_size, 30)
    if method == "streaming" and not start_size:
        assert setting.key == Setting("recent_only", 0, 30)
    else:
        assert setting.key.compressor() == setting.compressor()
    if method != "baseline":  # sinks count where they are asked for, and nowhere else
        has = "start_size" in vars(setting.compressor())
        assert setting.budget == 30 + (start_size if has else 0)
        if setting.compressor().budget:
            assert setting.compressor().budget == setting.budget


def test_the_line_for_papermill():
    line = Setting("streaming", 4, 28, 2).papermill("notebooks/some.ipynb", {"text": "my text.txt"})
    assert line == (
        "papermill notebooks/some.ipynb -p method streaming -p start_size 4 -p recent_size 28 "
        "-p buffer 2 -p positions in_cache -p text 'my text.txt'"
    )


def test_an_error_in_a_job_is_shown(page):
    def fails():
        raise RuntimeError("no memory\nleft")
        yield

    page._worker.ask(fails)
    assert page.wait()["status"]["text"] == "RuntimeError: no memory left"


def test_looks_are_answered_while_a_long_job_runs():
    seen, go = [], threading.Event()

    def long():
        go.wait(10)
        for number in range(3):
            seen.append(number)
            if number == 0:
                worker.look(look)
            yield

    def look():
        seen.append("look")
        yield

    worker = Worker(seen.append, lambda: seen.append("idle"))
    worker.ask(long)
    go.set()
    assert worker.wait(10)
    assert seen == [0, "look", 1, 2, "idle"]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_jobs_take_their_turns_together(threads):
    whole, seen, ended = torch.get_num_threads(), [], []

    def job(name, turns):
        try:
            for turn in range(turns):
                seen.append(torch.get_num_threads())
                yield name, turn
        finally:
            ended.append(name)

    rounds = list(together({"a": job("a", 2), "b": job("b", 3)}, threads))
    assert [x for found in rounds for x in found.values() if x[0] == "a"] == [("a", 0), ("a", 1)]
    assert [x for found in rounds for x in found.values() if x[0] == "b"] == [
        ("b", turn) for turn in range(3)
    ]
    assert len(rounds) == (5 if threads == 1 else 3)
    assert set(seen) == {max(1, threads // 2)}
    assert torch.get_num_threads() == whole
    left = together({"c": job("c", 9), "d": job("d", 9)}, threads)
    next(left)
    left.close()
    assert ended[2:] == ["c", "d"][: min(threads, 2)]  # a job that has not begun needs no end


def test_headless_there_is_a_sentence_and_nothing_runs(session, monkeypatch):
    monkeypatch.setenv("KVLAB_NOTEBOOK", "some")
    page = ExplorerWidget(session, SETTING, WHERE, "notebooks/some.ipynb")
    assert list(page._repr_mimebundle_()) == ["text/markdown", "text/plain"]
    assert page.begun == []
    assert not page.live


def test_the_figure_and_the_table(session):
    use_style()
    fig = figure.draw(session, SETTING, 200, 1, 0, MACHINE)
    titles = [ax.get_title() or ax.get_title("left") for ax in fig.axes]
    told = titles[1].replace("\N{NO-BREAK SPACE}", " ")
    assert told.startswith("Loss by position, mean PPL: dense: ")
    assert "chosen / window: " in told
    fig.draw_without_rendering()
    (title,) = fig.axes[1].findobj(lambda x: isinstance(x, Text) and x.get_text() == titles[1])
    assert title.get_window_extent().x1 <= fig.axes[1].bbox.x1  # no wider than its panel
    assert titles[2].startswith("Attention of token 200, layer 1, head 0")
    (boxed,) = [patch for patch in fig.axes[0].patches if not patch.get_fill()]
    assert (boxed.get_width(), boxed.get_y()) == (1, pytest.approx(2 + 0.35 - 0.5))
    bars = [line[1, 1] for line in fig.axes[2].collections[0].get_segments()]
    assert bars == pytest.approx(session.look(SETTING, 200).of(1, 0)[1])
    table = figure.table(session, SETTING).set_index("method")
    assert list(table.index) == ["baseline", "recent_only_32", "streaming_32"]
    nll = session.nll(SETTING)
    assert table.ppl["streaming_32"] == pytest.approx(nll[:288].mean().exp().item(), rel=1e-5)
    last = nll[-74:]
    assert table.ppl_last_quarter["streaming_32"] == pytest.approx(
        last[:64].mean().exp().item(), 1e-5
    )
    assert f"perplexity of {table.ppl['streaming_32']:.1f}" in figure.reading(session, SETTING)
    texts = figure.written(session, SETTING, 100, 5)
    assert texts.kept.tolist() == ["dense", "window 32", "sinks + window 4 + 28"]
    assert texts.written.str.len().tolist() == [5, 5, 5]


def test_a_curve_grows_by_whole_spans():
    nll = torch.linspace(1, 3, 299)
    whole, part = views.curve(nll, 299), views.curve(nll, 100)
    assert part["x"] == whole["x"][: len(part["x"])]
    assert part["y"] == whole["y"][: len(part["y"])]
    assert max(part["x"]) < 100
    assert (part["done"], part["total"]) == (100, 299)
    assert np.isfinite(whole["y"]).all()


def test_a_curve_that_has_grown_is_that_of_the_whole(session, monkeypatch):
    """Each span is computed once; begun anew or asked for again it is the same."""
    nll, spans, counts = torch.linspace(1, 3, 299), views.nll_by_position, []
    steps = (10, 100, 200, 299, 299, 100)
    expected = [views.curve(nll, done) for done in steps]

    def counting(nll, edges):
        counts.append(len(edges) - 1)
        return spans(nll, edges)

    monkeypatch.setattr(views, "nll_by_position", counting)
    assert [session.curve(SETTING, nll, done) for done in steps] == expected
    assert counts == [5, 2, 2, 5]


def test_texts_begin_where_they_are_asked_to(monkeypatch):
    monkeypatch.setattr(
        "lib.experiments.explorer.text.load_tokens", lambda *_: torch.arange(min(_[2], 200))
    )
    assert text_tokens(Letters(), "docs", "", 50, 100).tolist() == [0, *range(51, 150)]
    with pytest.raises(ValueError, match="no more than the text's 200 tokens"):
        text_tokens(Letters(), "docs", "", 150, 100)
    assert list(text_errors(" ", "", -1, 10)) == ["text", "offset", "seq_len"]


def test_a_text_that_is_too_short_is_told_in_the_words_of_the_page(page, monkeypatch):
    monkeypatch.setattr(
        "lib.experiments.explorer.text.load_tokens", lambda *_: torch.arange(min(_[2], 200))
    )
    page.set(text="some.txt", seq_len=250)
    told = "length=250: allowed is from 0 on, no more than the text's 200 tokens"
    assert page.wait()["errors"] == {"text": told}


def test_wrong_parameters_are_refused_in_one_sentence(session):
    with pytest.raises(
        ValueError, match="window: 61 .* 64 tokens; step = 300: allowed is 0 to 299"
    ):
        refuse(Setting("streaming", 4, 61), session.model, 300, 300, 0, 0)
