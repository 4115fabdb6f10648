"""transformers' own tests of generate(), with a CompressedCache where they have a DynamicCache.

    pip install parameterized
    python benchmarks/generation_tests.py PATH_TO_TRANSFORMERS

The path is a checkout of transformers' repository at the installed version. Its tests run twice,
padding moved to the left, and it is told which of those that pass with the stock cache pass with
ours, and why the others don't. The budget is larger than their texts: the tests expect all of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import torch
import transformers
from transformers import DynamicCache, GenerationMixin

from lib import CompressedCache, StreamingLLM
from lib.paths import ROOT

TYPES = ["gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3"]
METHOD = StreamingLLM(4, 508)
OUT, OURS = "KVLAB_TESTS_OUT", "KVLAB_TESTS_OURS"  # what a run is told: where to write, which cache
found = {}  # of a run: "passed" or what went wrong, by test


def pytest_configure(config) -> None:
    """Tests of pipelines, which the models' tests import, ask for many more packages."""
    stub = ModuleType("tests.test_pipeline_mixin")
    stub.PipelineTesterMixin = type("PipelineTesterMixin", (), {})
    sys.modules[stub.__name__] = stub


def pytest_collection_modifyitems(items) -> None:
    """Keep the tests of generate(), and give them left padding and, where told, our cache."""
    from tests.generation.test_utils import GenerationTesterMixin as Tests

    items[:] = [x for x in items if hasattr(Tests, getattr(x, "originalname", x.name))]
    Tests.prepare_config_and_inputs_for_generate = padded_left(
        Tests.prepare_config_and_inputs_for_generate
    )
    if os.environ[OURS]:
        own = GenerationMixin._prepare_cache_for_generation
        GenerationMixin._prepare_cache_for_generation = with_our_cache(own)


def padded_left(prepare):
    """`prepare` with each row's padding in front, and no pad token within a text."""

    def prepared(*args, **kwargs):
        config, inputs = prepare(*args, **kwargs)
        pad, ids = config.get_text_config().pad_token_id, inputs["input_ids"]
        if pad is not None:
            other = (pad + 5) % config.get_text_config().vocab_size  # no other special token
            inputs["input_ids"] = torch.where(ids == pad, other, ids)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = inputs["attention_mask"].sort(dim=-1).values
        return config, inputs

    return prepared


def with_our_cache(own):
    """`own`, the method of a model that makes generate()'s cache, with ours for a DynamicCache."""

    def prepare(model, generation_config, model_kwargs, *args, **kwargs):
        own(model, generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            model_kwargs["past_key_values"] = CompressedCache(model, METHOD)

    return prepare


def pytest_runtest_logreport(report) -> None:
    if report.failed:
        found[report.nodeid] = str(report.longrepr.reprcrash.message).splitlines()[0]
    elif report.when == "call" and report.passed:
        found[report.nodeid] = "passed"


def pytest_sessionfinish() -> None:
    Path(os.environ[OUT]).write_text(json.dumps(found))


def run(checkout: Path, types: list[str], ours: bool) -> dict[str, str]:
    """What each test comes to with the stock cache or ours."""
    files = [f"tests/models/{name}/test_modeling_{name}.py" for name in types]
    path = [str(checkout), str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", Path(__file__).stem]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        told = {"PYTHONPATH": os.pathsep.join(path), OUT: str(out), OURS: "1" if ours else ""}
        command = [sys.executable, "-m", "pytest", *options, *files]
        done = subprocess.run(
            command, cwd=checkout, env=os.environ | told, capture_output=True, text=True
        )
        found = json.loads(out.read_text()) if out.exists() else {}
    if not found:
        raise SystemExit(f"no test was run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of transformers' repository")
    parser.add_argument("types", nargs="*", default=TYPES, help="model types")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    stock, ours = (run(options.checkout.resolve(), options.types, x) for x in (False, True))
    passing = [test for test, x in stock.items() if x == "passed"]
    lines = ["| model type | tests | pass with DynamicCache | of these with ours |"]
    lines.append("|---|---|---|---|")
    for name in options.types:
        mine = [test for test in stock if f"/{name}/" in test]
        good = [test for test in mine if test in passing]
        kept = sum(ours.get(test) == "passed" for test in good)
        lines.append(f"| {name} | {len(mine)} | {len(good)} | {kept} |")
    why = Counter(ours.get(test, "skipped") for test in passing)
    del why["passed"]
    lines += [f"\ntransformers {transformers.__version__}; {METHOD}.", ""]
    lines += [f"- {count} tests: {reason}" for reason, count in why.most_common()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
