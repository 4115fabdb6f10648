"""params/*.yaml: notebooks and parameters that exist, and estimates that follow from the shapes."""

import re

import pytest
import torch
import yaml

from lib import load_model
from lib.load.shapes import PYTHIA_SHAPES
from lib.load.texts import HUB_TEXTS
from lib.paths import PARAMS
from lib.run.__main__ import choose, read_parameters

# sweep.yaml is no parameter file: tests/sweep
FILES = {file.stem: file for file in sorted(PARAMS.glob("*.yaml")) if file.stem != "sweep"}
PYTHIA = [stem for stem in FILES if stem.startswith("pythia")]


@pytest.mark.parametrize("stem", FILES)
def test_every_section_is_a_notebook_that_takes_its_parameters(stem):
    sections = yaml.safe_load(FILES[stem].read_text(encoding="utf-8"))
    given = read_parameters(sections, choose([*sections]))
    assert {notebook.stem: values for notebook, values in given.items()} == sections
    comment = " ".join(FILES[stem].read_text(encoding="utf-8").split("\n")[:2])
    assert re.match(r"# .*\babout .* (minutes|hours)\b.* [\d.]+ GB\b", comment)


@pytest.mark.parametrize("stem", PYTHIA)
def test_every_notebook_reads_the_model_of_the_file(stem):
    name = f"EleutherAI/{stem}"
    assert name in PYTHIA_SHAPES
    for notebook, values in yaml.safe_load(FILES[stem].read_text(encoding="utf-8")).items():
        assert values["model"] == name, notebook
        assert values.get("text", "pg19") in HUB_TEXTS, notebook


@pytest.mark.parametrize("stem", PYTHIA)
def test_the_memory_follows_from_the_shapes(stem):
    """Weights, cache and logits of 02's dense attention, the most that is held at once."""
    text = FILES[stem].read_text(encoding="utf-8")
    told = re.search(
        r"and (\d+) GB.*weights ([\d.]+) GB, cache (\d+) KiB a token\n"
        r"# \(02: dense attention over (\d+) x ([\d,]+) tokens ([\d.]+) GB, "
        r"logits .* ([\d.]+) GB\)",
        text,
        re.DOTALL,
    )
    peak, weights, cache, texts, length, dense, logits = (
        float(number.replace(",", "")) for number in told.groups()
    )
    model, _ = load_model(f"random:EleutherAI/{stem}", "meta", torch.float16)
    config = model.config
    bytes_a_token = 2 * 2 * config.num_hidden_layers * config.hidden_size
    values = yaml.safe_load(text)["02_ppl_vs_length"]
    assert (texts, length) == (values["num_texts"], values["max_length"])
    assert weights == pytest.approx(sum(p.nbytes for p in model.parameters()) / 1e9, rel=0.02)
    assert cache == bytes_a_token / 1024
    assert dense == pytest.approx(texts * length * bytes_a_token / 1e9, rel=0.02)
    # of one chunk: in float16, in float32, and their logarithms
    assert logits == pytest.approx(texts * 512 * config.vocab_size * (2 + 4 + 4) / 1e9, rel=0.04)
    assert weights + dense + logits <= peak < weights + dense + logits + 1.5
