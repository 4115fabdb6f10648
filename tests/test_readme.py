"""The README does what it says: its tables are the results', its examples run, its map is whole."""

import re

import pytest
import torch

from lib.outputs import declared_outputs
from lib.paths import NOTEBOOKS, ROOT
from lib.readme import PAGES, filled

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_quoted_tables_are_those_in_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- results/tables/" in text
    assert filled(page) == text, "run `python -m lib.readme`"


def test_library_example_runs():
    names = {}
    exec(EXAMPLES[0], names)
    assert names["result"].cache_length == 256
    assert len(names["out"].tokens) == 50
    assert names["out"].evictions > 0


def test_method_example_is_a_method():
    from lib import evaluate, load_model, load_tokens

    names = {}
    exec(EXAMPLES[1], names)
    model, tokenizer = load_model("reference")
    tokens = load_tokens("docs", tokenizer, max_tokens=400)
    result = evaluate(model, tokens, names["EveryOther"](limit=64), chunk_size=16)
    assert result.cache_length <= 64
    assert torch.isfinite(result.nll).all()


def test_map_lists_every_notebook_and_only_outputs_that_are_declared():
    rows = re.findall(r"^\| `(\d\d_\w+)` \| ([^|]*) \|", README, re.MULTILINE)
    assert [name for name, _ in rows] == sorted(
        path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")
    )
    for name, listed in rows:
        declared = {
            output.split("/")[1].split(".")[0]
            for output in declared_outputs(NOTEBOOKS / f"{name}.ipynb")
        }
        assert set(re.findall(r"`(\w+)`", listed)) <= declared, name
