"""docs/robustness.md says what is seen: every case is tried again."""

import re

import pytest
from bad_inputs import CASES, PAGE, Bench, can_mount, outcome, row

LINES = PAGE.read_text(encoding="utf-8").splitlines()
# other machines, other builds of torch, a method of your own
FORGIVEN = re.compile(r"alloc_cpu\.cpp:\d+|'auto'.*\]|'streaming\\_llm'.*\]")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("tried").resolve())


@pytest.fixture(scope="module")
def mounting() -> bool:
    return can_mount()


def test_the_page_has_a_line_for_every_case():
    assert len({(case.where, case.tried) for case in CASES}) == len(CASES) >= 60
    assert len([line for line in LINES if line.startswith("| ")]) == len(CASES) + len(
        {case.where for case in CASES}
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.where}: {case.tried}")
def test_what_is_seen_is_what_the_page_says(bench, mounting, case):
    if case.mounts and not mounting:
        pytest.skip("no right to mount a file system")
    seen = row(case, outcome(bench, case))
    assert FORGIVEN.sub("", seen) in {FORGIVEN.sub("", line) for line in LINES}
