"""The parameters cell as a contract."""

from pathlib import Path

import pytest
import yaml
from conftest import write_notebook
from hypothesis import given
from hypothesis import strategies as st

from lib.paths import PARAMS
from lib.run.__main__ import choose, read_parameters
from lib.run.params import Parameter, ParameterError, changed, check, read_contract, section

NO_BOOL = st.text().filter(lambda text: text.lower() not in ("true", "false"))


@pytest.fixture(scope="module")
def contract(tmp_path_factory) -> list[Parameter]:
    lines = [
        "cache: int = 64  # tokens kept, sinks included [1..1024]",
        "ratio: float = 0.5  # share kept [0..1]",
        "model: str = 'reference'  # a name",
        'positions: str = "in_cache"  # how – distances are counted [in_cache | original]',
        "plot: bool = True",
        "lengths: list[int] = [",
        "    128, 256]  # context lengths [1..]",
        "methods: list[str] = ['a']  # [a | b]",
    ]
    path = tmp_path_factory.mktemp("params") / "01_x.ipynb"
    return read_contract(write_notebook(path, parameters="\n".join(lines)))


def test_reads_every_line(contract):
    by_name = {parameter.name: parameter for parameter in contract}
    names = ["cache", "ratio", "model", "positions", "plot", "lengths", "methods"]
    assert list(by_name) == names
    assert by_name["cache"].meaning == "tokens kept, sinks included"
    assert (by_name["cache"].low, by_name["cache"].high) == (1, 1024)
    assert by_name["positions"].choices == ("in_cache", "original")
    assert by_name["positions"].meaning == "how – distances are counted"
    assert by_name["lengths"].default == [128, 256]
    assert (by_name["lengths"].low, by_name["lengths"].high) == (1, None)
    assert by_name["plot"].allowed == "a bool"


def test_a_notebook_without_parameters_takes_none(tmp_path):
    path = write_notebook(tmp_path / "01_x.ipynb", parameters="")
    assert read_contract(path) == []
    with pytest.raises(ParameterError, match="unknown parameter cache .*none"):
        check([], {"cache": 1})


@given(value=st.integers(1, 1024))
def test_an_exact_float_is_an_int(contract, value):
    checked = check(contract, {"cache": float(value)})["cache"]
    assert checked == value
    assert type(checked) is int


@given(value=st.floats().filter(lambda number: not number.is_integer()))
def test_an_inexact_float_is_no_int(contract, value):
    with pytest.raises(ParameterError, match=r"cache must be an int in \[1\.\.1024\]"):
        check(contract, {"cache": value})


@given(value=st.integers() | st.floats())
def test_a_range_holds_both_ways(contract, value):
    if 0 <= value <= 1:
        assert check(contract, {"ratio": value}) == {"ratio": value}
    else:
        with pytest.raises(ParameterError, match=r"ratio must be a float in \[0\.\.1\]"):
            check(contract, {"ratio": value})


@given(value=st.lists(st.integers(), min_size=1))
def test_a_range_holds_for_every_element(contract, value):
    if min(value) >= 1:
        assert check(contract, {"lengths": value}) == {"lengths": value}
    else:
        with pytest.raises(ParameterError, match="lengths must be a list of int"):
            check(contract, {"lengths": value})


@pytest.mark.parametrize("spelt", ["true", "True", "TRUE", "false", "False", "FALSE"])
def test_yamls_words_are_bools_where_one_is_meant(contract, spelt):
    assert check(contract, {"plot": spelt})["plot"] is (spelt.lower() == "true")
    assert check(contract, {"model": spelt}) == {"model": spelt}
    for name in ("cache", "ratio"):
        with pytest.raises(ParameterError, match=f"got '{spelt}'"):
            check(contract, {name: spelt})


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 0.001), ("5E-1", 0.5), ("+.25e+0", 0.25), ("0.1e1", 1.0)]
)
def test_numbers_are_spelt_as_in_yaml_1_2(contract, text, number):
    assert yaml.safe_load(text) == text  # as of 1.1
    assert check(contract, {"ratio": text}) == {"ratio": number}
    assert check(contract, {"model": text}) == {"model": text}


def test_elements_and_whole_numbers_are_spelt_so_too(contract):
    given = yaml.safe_load("{cache: 1e3, lengths: [1e3, 2, 1.5e3]}")
    assert check(contract, given) == {"cache": 1000, "lengths": [1000, 2, 1500]}


def test_a_list_as_text(contract):
    given = {"methods": "[b, a]", "lengths": "[128, 1e3]", "model": "[a]"}
    expected = {"methods": ["b", "a"], "lengths": [128, 1000], "model": "[a]"}
    assert check(contract, given) == expected


@given(value=st.none() | NO_BOOL | st.lists(st.integers()) | st.dictionaries(st.text(), st.none()))
def test_what_is_no_number_nor_bool_is_refused(contract, value):
    for name in ("cache", "ratio", "plot"):
        with pytest.raises(ParameterError, match=f"parameter {name} must be"):
            check(contract, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("cache", True, "an int in [1..1024]; got True"),
        ("cache", 0, "an int in [1..1024]; got 0"),
        pytest.param("cache", 10**400, "an int in [1..1024]", id="beyond all floats"),
        pytest.param("ratio", 10**400, "a float in [0..1]", id="beyond all floats, as one"),
        ("cache", "abc", "an int in [1..1024]; got 'abc'"),
        ("plot", 1, "a bool; got 1"),
        ("plot", "yes", "a bool; got 'yes'"),
        ("plot", "tRUE", "a bool; got 'tRUE'"),
        ("plot", " true", "a bool; got ' true'"),
        ("model", 410, "a str; got 410"),
        ("positions", "in-cache", "a str out of: in_cache, original; got 'in-cache'"),
        ("methods", ["a", "c"], "a list of str out of: a, b; got ['a', 'c']"),
        ("lengths", [1, 0], "a list of int in [1..]; got [1, 0]"),
        ("lengths", [], "a list of int in [1..]; got []"),
        ("lengths", 128, "-p lengths '[first, second]'"),
        ("lengths", "128", "-p lengths '[first, second]'"),
        ("lengths", "[128", "a list of int in [1..]; got '[128'"),
        ("lengths", "[128, a]", "a list of int in [1..]; got '[128, a]'"),
        ("ratio", "1e", "a float in [0..1]; got '1e'"),
        ("ratio", "1e400", "a float in [0..1]; got '1e400'"),
        ("cache", "1.5e0", "an int in [1..1024]; got '1.5e0'"),
        ("cahce", 1, "unknown parameter cahce; did you mean cache? (parameters: cache, ratio,"),
    ],
)
def test_a_refusal_says_what_is_allowed(contract, name, value, told):
    with pytest.raises(ParameterError) as refusal:
        check(contract, {name: value})
    assert name in str(refusal.value)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cache = 64", "not a line"),
        ("import os", "not a line"),
        ("cache: dict = {}", "of type dict"),
        ("cache: int = 0  # tokens [1..]", "cache must be"),
        ("cache: int = 1  # tokens [some]", "neither a range"),
    ],
)
def test_a_broken_contract_is_an_error(tmp_path: Path, line, told):
    path = write_notebook(tmp_path / "01_x.ipynb", parameters=line)
    with pytest.raises(ValueError, match=told):
        read_contract(path)


def test_changed_are_those_that_are_not_the_defaults(contract):
    given = {"cache": 64.0, "ratio": 0.25, "lengths": [128, 256], "model": "other"}
    assert changed(contract, check(contract, given)) == {"ratio": 0.25, "model": "other"}
    assert changed(contract, {}) == {}


def test_the_quick_parameters_fit_the_notebooks():
    """Every notebook's contract can be read, and each has its section in the quick file."""
    notebooks = choose([])
    content = yaml.safe_load((PARAMS / "quick.yaml").read_text())
    assert set(content) == {notebook.stem for notebook in notebooks}
    given = read_parameters(content, notebooks)
    assert all(given[notebook] for notebook in notebooks)


def test_sections():
    other = {"05_explorer": {"cache": 2}}
    assert section({"03_speed": {"cache": 1}} | other, "03_speed") == {"cache": 1}
    assert section(other, "03_speed") == {}
    assert section({"03_speed": None}, "03_speed") == {}
    assert section({"cache": 1}, "03_speed") == {"cache": 1}
    assert section(None, "03_speed") == {}
    with pytest.raises(ParameterError, match="cache stands outside"):
        section({"03_speed": {"cache": 1}, "cache": 1}, "03_speed")
    with pytest.raises(ParameterError, match="no notebook 03_sped; did you mean 03_speed. .*: 00_"):
        section(other | {"03_sped": {"cache": 1}}, "05_explorer")
    with pytest.raises(ParameterError, match="mapping"):
        section(["cache"], "03_speed")
