"""What was tried to break it, and what the user sees: the cases, and the page made of them.

    python tests/bad_inputs.py

runs every case and writes docs/robustness.md. tests/test_bad_inputs.py runs them again and holds
what is seen against the page.
"""

import base64
import contextlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pandas as pd
import torch

import lib
from lib.load import smollm2
from lib.paths import NOTEBOOKS, ROOT, atomic_path
from lib.run import params

PAGE = ROOT / "docs" / "robustness.md"


class Shown(Exception):
    """What a command line shows before it ends with an error."""


@dataclass(frozen=True)
class Case:
    """One thing that was tried; `call` raises what the user sees."""

    where: str
    tried: str
    call: Callable[["Bench"], object]
    mounts: bool = False  # needs the right to mount a file system


class Bench:
    """What the cases try things on: a model, a text and an empty folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model, self.tokenizer = lib.load_model("reference", device="cpu")
        self.ids = lib.load_tokens("docs", self.tokenizer, max_tokens=64)

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def model_folder(self, name: str, **replaced: bytes | None) -> str:
        """A copy of the reference model with some files replaced, or left out for None."""
        folder = self.folder / name
        folder.mkdir()
        for source in (ROOT / "models" / "reference").iterdir():
            if source.stem not in replaced:
                (folder / source.name).symlink_to(source)
            elif replaced[source.stem] is not None:
                (folder / source.name).write_bytes(replaced[source.stem])
        return str(folder)

    def evaluate(self, method=None, ids=None, **options):
        return lib.evaluate(self.model, self.ids if ids is None else ids, method, **options)

    def load(self, *arguments, **options):
        return lib.load_model(*arguments, **{"device": "cpu"} | options)

    def text(self, name, *arguments, **options):
        return lib.load_tokens(name, self.tokenizer, *arguments, **options)


def outcome(bench: Bench, case: Case) -> str:
    """What the user sees in a line, folders of this machine left out."""
    try:
        case.call(bench)
    except AssertionError:
        raise
    except Shown as shown:
        text = str(shown)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    else:
        raise AssertionError(f"{case.where}, {case.tried}: went through")
    text = " ".join(text.split())
    for folder, name in ((bench.folder, "FOLDER"), (ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(folder), name)
    return text if len(text) <= 260 else f"{text[:240].rstrip()} ..."


def shell(*command: str) -> None:
    """Show what a command says on stderr; it must end with an error, and without a traceback."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": _path()}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode, command
    assert "Traceback" not in done.stderr, done.stderr
    raise Shown(done.stderr.splitlines()[0])


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def papermill(*arguments: str) -> None:
    """`papermill notebooks/03_speed.ipynb ...`, refused before a kernel starts."""
    import papermill.cli
    from click.testing import CliRunner

    with contextlib.chdir(ROOT):
        done = CliRunner().invoke(papermill.cli.papermill, ["notebooks/03_speed.ipynb", *arguments])
    assert done.exit_code == 2, done.output
    raise Shown(done.output)


def module(name: str, *arguments: str) -> None:
    """`python -m lib.NAME ...`, in this process."""
    main = __import__(f"lib.{name}.__main__", fromlist=["main"]).main
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *arguments]), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            text = f"{said.getvalue()} {end.code}"
            raise Shown(text) from end


def notebook(stem: str, **given) -> None:
    """Give parameters to a notebook, as papermill and `lib.run` do."""
    params.check(params.read_contract(NOTEBOOKS / f"{stem}.ipynb"), given)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder) / "a", "size=64k"):
                return True
        except (subprocess.CalledProcessError, OSError):
            return False


def save_into(folder: Path, rows: int = 1) -> None:
    with mock.patch.dict(os.environ, {"KVLAB_RESULTS": str(folder)}):
        lib.save_table(pd.DataFrame({"a": range(rows)}), "small")


def interrupted_write(bench: Bench) -> None:
    """The earlier file is still whole, and nothing else lies beside it."""
    target = Path(bench.file("kept/a.csv", "earlier"))
    try:
        with atomic_path(target) as path:
            path.write_text("half a")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert target.read_text() == "earlier"
        assert [path.name for path in target.parent.iterdir()] == ["a.csv"]
        raise Shown("KeyboardInterrupt; the earlier file is as it was") from None


class Runs:
    """Pickles to a call of `os.mkdir`: what a malicious weight file does when it is unpickled."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def malicious_pickle(bench: Bench) -> None:
    folder = Path(bench.model_folder("pickled", model=None))
    torch.save({"weight": Runs(str(bench.folder / "ran"))}, folder / "pytorch_model.bin")
    try:
        bench.load(str(folder))
    finally:
        assert not (bench.folder / "ran").exists()


def pickle_in_disguise(bench: Bench) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": Runs(str(bench.folder / "ran2"))}, buffer)
    try:
        bench.load(bench.model_folder("disguised", model=buffer.getvalue()))
    finally:
        assert not (bench.folder / "ran2").exists()


def remote_code(bench: Bench) -> None:
    marker = bench.folder / "ran3"
    config = {
        "model_type": "new",
        "auto_map": {"AutoConfig": "code.X", "AutoModelForCausalLM": "code.X"},
    }
    folder = bench.model_folder("remote", config=json.dumps(config).encode())
    bench.file("remote/code.py", f"import os; os.mkdir({str(marker)!r})\nclass X: pass\n")
    try:
        bench.load(folder)
    finally:
        assert not marker.exists()


def malicious_gguf(bench: Bench) -> None:
    """A header that asks for 2**62 bytes of its first name."""
    header = b"GGUF" + struct.pack("<IQQQ", 3, 2**40, 2**40, 2**62)
    path = Path(bench.file("malicious.gguf", header))
    environment = {"KVLAB_CACHE": str(bench.folder / "cache")}
    with (
        mock.patch.object(smollm2, "_gguf_file", return_value=path),
        mock.patch.dict(os.environ, environment),
    ):
        bench.load("smollm2")


def malicious_header(bench: Bench) -> None:
    """A safetensors file whose first eight bytes, the header's size, say 2**60."""
    bench.load(bench.model_folder("header", model=struct.pack("<Q", 2**60) + b"{}"))


def nan_weights(bench: Bench) -> None:
    import copy

    model = copy.deepcopy(bench.model)
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    lib.evaluate(model, bench.ids, lib.StreamingLLM(4, 12))


def offline(bench: Bench, call: Callable[[], object]) -> None:
    refused = mock.Mock(side_effect=ConnectionError("no route to host"))
    with (
        mock.patch("lib.load.hub.model_info", refused),
        mock.patch("lib.load.hub.dataset_info", refused),
    ):
        call()


def short_text(bench: Bench) -> None:
    nll = [bench.evaluate(method).nll for method in (None, S(4, 508))]
    assert torch.allclose(*nll, atol=1e-5)
    raise Shown("what dense attention gives: nothing is cut")


def few_tokens(bench: Bench) -> None:
    from lib.load.texts import texts_of

    texts_of(bench.ids, 4, 100)


S, R = lib.StreamingLLM, lib.RecentOnly
EVALUATE, GENERATE, MODEL, TEXT = "evaluate", "generate", "load_model", "load_tokens"
METHODS, NOTEBOOK, LINE, FILES = "methods", "notebook", "command line", "results"
MALICE = "malicious"
TAG = "cache: !!python/object/apply:os.mkdir [ran]\n"

CASES = [
    Case(EVALUATE, "no tokens", lambda b: b.evaluate(ids=b.ids[:0])),
    Case(EVALUATE, "one token", lambda b: b.evaluate(ids=b.ids[:1])),
    Case(EVALUATE, "ids of a wrong vocabulary", lambda b: b.evaluate(ids=b.ids + 9000)),
    Case(EVALUATE, "negative ids", lambda b: b.evaluate(ids=b.ids - 9000)),
    Case(EVALUATE, "ids that are no integers", lambda b: b.evaluate(ids=b.ids.float())),
    Case(EVALUATE, "text in place of ids", lambda b: b.evaluate(ids="a text")),
    Case(EVALUATE, "ids in three dimensions", lambda b: b.evaluate(ids=b.ids[None, None])),
    Case(EVALUATE, "a text shorter than the window", short_text),
    Case(EVALUATE, "fewer tokens than texts need", few_tokens),
    Case(EVALUATE, "chunk_size=0", lambda b: b.evaluate(chunk_size=0)),
    Case(EVALUATE, "chunk_size=-5", lambda b: b.evaluate(chunk_size=-5)),
    Case(EVALUATE, "chunk_size=2.5", lambda b: b.evaluate(chunk_size=2.5)),
    Case(EVALUATE, "buffer=-1", lambda b: b.evaluate(S(4, 12), buffer=-1)),
    Case(EVALUATE, "unknown positions", lambda b: b.evaluate(S(4, 12), positions="absolute")),
    Case(EVALUATE, "a method's name in place of a method", lambda b: b.evaluate("streaming_llm")),
    Case(EVALUATE, "a budget beyond the memory", lambda b: b.evaluate(S(4, 10**15))),
    Case(EVALUATE, "weights that are NaN", nan_weights),
    Case(GENERATE, "an empty prompt", lambda b: lib.generate(b.model, b.ids[:0], S(4, 12))),
    Case(GENERATE, "max_new_tokens=0", lambda b: lib.generate(b.model, b.ids, max_new_tokens=0)),
    Case(GENERATE, "max_new_tokens=-1", lambda b: lib.generate(b.model, b.ids, max_new_tokens=-1)),
    Case(GENERATE, "temperature=-1", lambda b: lib.generate(b.model, b.ids, temperature=-1)),
    Case(
        GENERATE,
        "temperature=NaN",
        lambda b: lib.generate(b.model, b.ids, temperature=float("nan")),
    ),
    Case(
        GENERATE, "unknown prefill", lambda b: lib.generate(b.model, b.ids, S(4, 12), prefill="x")
    ),
    Case(GENERATE, "prefill_chunk=0", lambda b: lib.generate(b.model, b.ids, prefill_chunk=0)),
    Case(GENERATE, "compile dense attention", lambda b: lib.generate(b.model, b.ids, compile=True)),
    Case(
        GENERATE, "a chat with a model without a template", lambda b: lib.Chat(b.model, b.tokenizer)
    ),
    Case(METHODS, "recent_size=0", lambda b: S(4, 0)),
    Case(METHODS, "start_size=-1", lambda b: S(-1, 12)),
    Case(METHODS, "recent_size=12.5", lambda b: S(4, 12.5)),
    Case(METHODS, "window_size=0", lambda b: R(0)),
    Case(METHODS, "a budget below the sinks", lambda b: S.at_budget(4, start_size=4)),
    Case(METHODS, "a budget of 0", lambda b: lib.H2O.at_budget(0)),
    Case(METHODS, "keep_ratio=0", lambda b: lib.L2Compress(keep_ratio=0)),
    Case(METHODS, "keep_ratio=1.5", lambda b: lib.L2Compress(keep_ratio=1.5)),
    Case(METHODS, "keep_ratio=NaN", lambda b: lib.L2Compress(keep_ratio=float("nan"))),
    Case(METHODS, "an unknown method", lambda b: lib.get_compress_fn("streamingllm")),
    Case(METHODS, "an unknown strategy", lambda b: lib.FixSizeL2(strategy="best")),
    Case(METHODS, "no cache to compress", lambda b: lib.l2_compress("a cache")),
    Case(
        METHODS, "streaming with recent_size=0", lambda b: lib.enable_streaming_llm(b.model, 4, 0)
    ),
    Case(METHODS, "a cache for no model", lambda b: lib.CompressedCache("reference", S(4, 12))),
    Case(MODEL, "an unknown name", lambda b: b.load("no-such-model")),
    Case(MODEL, "a name that is a number", lambda b: b.load(7)),
    Case(MODEL, "an unknown shape", lambda b: b.load("random:EleutherAI/pythia-7t")),
    Case(MODEL, "a device that is not there", lambda b: b.load(device="cuda:99")),
    Case(MODEL, "dtype int8", lambda b: b.load(dtype=torch.int8)),
    Case(MODEL, "the hub can't be reached", lambda b: offline(b, lambda: b.load("nobody/nothing"))),
    Case(
        MODEL,
        "an empty folder",
        lambda b: b.load(str((b.folder / "empty").mkdir() or b.folder / "empty")),
    ),
    Case(MODEL, "no weights in the folder", lambda b: b.load(b.model_folder("bare", model=None))),
    Case(
        MODEL,
        "truncated weights",
        lambda b: b.load(
            b.model_folder(
                "cut", model=(ROOT / "models/reference/model.safetensors").read_bytes()[:-9]
            )
        ),
    ),
    Case(
        MODEL,
        "a pointer of git LFS as weights",
        lambda b: b.load(
            b.model_folder("lfs", model=b"version https://git-lfs.github.com/spec/v1\n")
        ),
    ),
    Case(
        MODEL, "a config that is no JSON", lambda b: b.load(b.model_folder("config", config=b"{"))
    ),
    Case(MODEL, "no tokenizer", lambda b: b.load(b.model_folder("mute", tokenizer=None))),
    Case(TEXT, "an unknown text", lambda b: b.text("novels")),
    Case(TEXT, "a file that is not there", lambda b: b.text(str(b.folder / "none.txt"))),
    Case(TEXT, "an empty file", lambda b: b.text(b.file("empty.txt", ""))),
    Case(TEXT, "a file that is not UTF-8", lambda b: b.text(b.file("latin.txt", b"caf\xe9 " * 9))),
    Case(TEXT, "an unreadable parquet file", lambda b: b.text(b.file("bad.parquet", "PAR1"))),
    Case(TEXT, "max_tokens=0", lambda b: b.text("docs", 0)),
    Case(TEXT, "an unknown split", lambda b: b.text("docs", 10, split="test")),
    Case(TEXT, "the hub can't be reached", lambda b: offline(b, lambda: b.text("wikitext"))),
    Case(NOTEBOOK, "an unknown parameter", lambda b: notebook("03_speed", cahce=512)),
    Case(NOTEBOOK, "a size of zero", lambda b: notebook("03_speed", cache=0)),
    Case(NOTEBOOK, "a negative size", lambda b: notebook("04_method_comparison", chunk_size=-1)),
    Case(NOTEBOOK, "a huge size", lambda b: notebook("04_method_comparison", budgets=[10**12])),
    Case(NOTEBOOK, "an empty list", lambda b: notebook("04_method_comparison", budgets=[])),
    Case(
        NOTEBOOK,
        "a number in place of a list",
        lambda b: notebook("04_method_comparison", budgets=512),
    ),
    Case(NOTEBOOK, "NaN", lambda b: notebook("01_attention_sinks", threshold=float("nan"))),
    Case(LINE, "papermill ... -p cahce 512", lambda b: papermill("-p", "cahce", "512")),
    Case(LINE, "papermill ... -p cache many", lambda b: papermill("-p", "cache", "many")),
    Case(LINE, "papermill ... -k julia-9", lambda b: papermill("-k", "julia-9")),
    Case(LINE, "papermill ... -f none.yaml", lambda b: papermill("-f", "none.yaml")),
    Case(LINE, "papermill ... -y '{cache: '", lambda b: papermill("-y", "{cache: ")),
    Case(LINE, "python -m lib.run speed", lambda b: module("run", "speed")),
    Case(
        LINE,
        "python -m lib.run --params none.yaml",
        lambda b: module("run", "--params", "none.yaml"),
    ),
    Case(
        LINE,
        "a parameter file for a notebook 03_sped",
        lambda b: module("run", "--params", b.file("sped.yaml", "03_sped: {cache: 1}")),
    ),
    Case(LINE, "python -m lib.sweep none.yaml", lambda b: module("sweep", "none.yaml")),
    Case(
        LINE,
        "a sweep over an unknown parameter",
        lambda b: module(
            "sweep", b.file("sed.yaml", "grids: [{notebook: 03_speed, table: a, over: {sed: [1]}}]")
        ),
    ),
    Case(
        LINE,
        "make run without a notebook",
        lambda b: shell("make", "--old-file=setup", "--assume-old=.venv/installed", "run"),
    ),
    Case(
        FILES, "a results folder that is read-only", lambda b: _on_mount(b, "read", "ro", 1), True
    ),
    Case(
        FILES,
        "a results folder that is full",
        lambda b: _on_mount(b, "full", "size=16k", 40000),
        True,
    ),
    Case(
        FILES, "a results folder that is a file", lambda b: save_into(Path(b.file("results", "")))
    ),
    Case(FILES, "a write that is interrupted", interrupted_write),
    Case(MALICE, "pickled weights that run code", malicious_pickle),
    Case(MALICE, "the same, named model.safetensors", pickle_in_disguise),
    Case(MALICE, "a model folder with code of its own", remote_code),
    Case(MALICE, "a GGUF file with a size of 2^62", malicious_gguf),
    Case(MALICE, "a safetensors file with a header of 2^60", malicious_header),
    Case(
        MALICE,
        "a notebook parameter that is code",
        lambda b: notebook("03_speed", cache="__import__('os').mkdir('ran')"),
    ),
    Case(
        MALICE,
        "papermill ... -p cache \"os.mkdir('ran')\"",
        lambda b: papermill("-p", "cache", "os.mkdir('ran')"),
    ),
    Case(MALICE, "papermill ... -y with a Python tag", lambda b: papermill("-y", TAG)),
    Case(
        MALICE,
        "papermill ... -b with a Python tag",
        lambda b: papermill("-b", base64.b64encode(TAG.encode()).decode()),
    ),
    Case(
        MALICE,
        "a parameter file with a Python tag",
        lambda b: module("run", "--params", b.file("tag.yaml", f"03_speed: {{{TAG.strip()}}}")),
    ),
    Case(
        MALICE,
        "a sweep file with a Python tag",
        lambda b: module("sweep", b.file("tags.yaml", f"grids: {TAG.split(': ')[1]}")),
    ),
]


def _on_mount(bench: Bench, name: str, options: str, rows: int) -> None:
    with mounted(bench.folder / name, options) as folder:
        try:
            save_into(folder, rows)
        finally:
            left = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
            assert not left, left


HEAD = """\
# What was tried, and what one sees

Written by `python tests/bad_inputs.py` from the tests themselves: every line is run by
`tests/test_bad_inputs.py`, which fails when something else is seen. Nearly all are refused before
any work; nothing is left half-written, and no code is run that came with a file or a parameter.
FOLDER is a folder of the test, `.` the repository.
"""


def page(seen: list[str]) -> str:
    """The page for what was seen of each case."""
    lines = [HEAD, f"{len(CASES)} cases.", ""]
    for where in dict.fromkeys(case.where for case in CASES):
        lines += [f"## {where.capitalize()}", "", "| tried | seen |", "|:--|:--|"]
        for case, text in zip(CASES, seen, strict=True):
            if case.where == where:
                lines.append(row(case, text))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def row(case: Case, seen: str) -> str:
    """One line of the page."""
    cells = (re.sub(r"([|<*_\[\]$])", r"\\\1", text) for text in (case.tried, seen))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all cases and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        seen = []
        for case in CASES:
            try:
                seen.append(outcome(bench, case))
            except AssertionError as error:
                print(error, file=sys.stderr)
                seen.append("?")
    with atomic_path(PAGE) as path:
        path.write_text(page(seen), encoding="utf-8")


if __name__ == "__main__":
    main()
