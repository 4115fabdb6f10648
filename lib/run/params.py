"""A notebook's parameters cell read as a contract: types, ranges and choices.

The cell tagged `parameters` holds one parameter a line:

    name: type = value  # meaning [allowed]

where the meaning may end with what is allowed in square brackets: a range (`[1..8192]`, either side
may be open), choices (`[in_cache | original]`), or nothing. Types are int, float, str, bool and
lists of them (`list[int]`); a range or choices then hold for every element.
"""

import ast
import difflib
import json
import math
import re
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.paths import all_notebooks

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})?\s*\.\.\s*({_NUMBER})?\s*")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]\s*$")
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
# YAML's spellings: `-p plot false` comes as a string, which papermill makes a bool of `False` only
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# a number in YAML 1.2, a string in the 1.1 that is read: `1e-3`, `1.5e3`, `-.5E+2`
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+")
_SECTION = re.compile(r"\d\d_\w+")


# what a notebook adds to an error that it tells in one sentence
SHORTENED = "%tb shows all of it"


class ParameterError(ValueError):
    """A parameter that the notebook does not take, or a value it does not allow."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    type: str  # int, float, str or bool: of the value, or of each element of a list
    is_list: bool
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What the parameter takes, in words: `an int in [1..8192]`."""
        kind = f"a list of {self.type}" if self.is_list else _with_article(self.type)
        if self.choices:
            return f"{kind} out of: {', '.join(self.choices)}"
        if self.low is None and self.high is None:
            return kind
        low, high = ("" if bound is None else f"{bound:.12g}" for bound in (self.low, self.high))
        return f"{kind} in [{low}..{high}]"

    def check(self, value: Any) -> Any:
        """`value` as this parameter's type, or a `ParameterError`."""
        if not self.is_list:
            return self._check_one(value, value)
        elements = _listed(value) if isinstance(value, str) else value
        if not isinstance(elements, list | tuple) or not elements:
            hint = f" (on the command line: -p {self.name} '[first, second]')"
            raise ParameterError(self._refusal(value) + hint)
        return [self._check_one(element, value) for element in elements]

    def _check_one(self, element: Any, value: Any) -> Any:
        element = _exact(element, self.type)
        if element is None or not self._allows(element):
            raise ParameterError(self._refusal(value))
        return element

    def _allows(self, element: Any) -> bool:
        if self.choices:
            return str(element) in self.choices
        if self.low is not None and element < self.low:
            return False
        return self.high is None or element <= self.high

    def _refusal(self, value: Any) -> str:
        return f"parameter {self.name} must be {self.allowed}; got {reprlib.repr(value)}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _listed(text: str) -> Any:
    """A list as it is written on a command line, `[first, second]`; None for what is no YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def number(value: Any) -> Any:
    """What YAML 1.1 reads as text, `1e3`, as the number that it is meant to be."""
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _exact(value: Any, type_name: str) -> Any:
    """`value` as the type if nothing is lost by it, else None. A bool is not a number."""
    if type_name == "bool" and isinstance(value, str):
        return _BOOLS.get(value)
    if type_name in ("str", "bool"):
        return value if isinstance(value, _TYPES[type_name]) else None
    value = number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        exact = _TYPES[type_name](value)
    except (ValueError, OverflowError):  # not finite, or an int beyond all floats
        return None
    # equal, because papermill reads `-p cache 1e3` as the float 1000.0
    return exact if exact == value and abs(exact) != math.inf else None


def read_contract(path: Path) -> list[Parameter]:
    """Parameters of a notebook, in order; none if it has no cell tagged `parameters`."""
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            return parse_contract("".join(cell["source"]))
    return []


def parse_contract(source: str) -> list[Parameter]:
    """Parameters of a cell, in order; ValueError on a line that is none or has a wrong value."""
    return [_parse(node, source.splitlines()) for node in ast.parse(source).body]


def _parse(node: ast.stmt, lines: list[str]) -> Parameter:
    line = lines[node.end_lineno - 1]
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value):
        raise ValueError(f"not a line `name: type = value  # meaning`: {line}")
    annotation = ast.unparse(node.annotation)
    is_list = annotation.startswith("list[")
    type_name = annotation.removeprefix("list[").removesuffix("]")
    if type_name not in _TYPES:
        raise ValueError(f"a parameter cannot be of type {annotation}: {line}")
    # the node ends at a byte, not at a character
    comment = line.encode()[node.end_col_offset :].decode().strip().removeprefix("#").strip()
    meaning, limits = _split_meaning(comment)
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        raise ValueError(f"not a plain value: {line}") from None
    parameter = Parameter(node.target.id, type_name, is_list, default, meaning, **limits)
    parameter.check(default)
    return parameter


def _split_meaning(comment: str) -> tuple[str, dict[str, Any]]:
    """The meaning without its square brackets, and what they say as `Parameter` fields."""
    brackets = _BRACKETS.search(comment)
    if not brackets:
        return comment, {}
    meaning, inside = comment[: brackets.start()].rstrip(), brackets.group(1)
    if numbers := _RANGE.fullmatch(inside):
        low, high = (None if bound is None else float(bound) for bound in numbers.groups())
        return meaning, {"low": low, "high": high}
    if "|" in inside:
        return meaning, {"choices": tuple(choice.strip() for choice in inside.split("|"))}
    raise ValueError(f"[{inside}] is neither a range [1..10] nor choices [a | b]: {comment}")


def check(contract: list[Parameter], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with every value as its parameter's type, or a `ParameterError`."""
    known = {parameter.name: parameter for parameter in contract}
    for name in given:
        if name not in known:
            raise ParameterError(f"unknown parameter {suggest(name, known, 'parameters')}")
    return {name: known[name].check(value) for name, value in given.items()}


def suggest(name: Any, known: Collection[str], noun: str) -> str:
    """A wrong name, the one it is near to, and all that are known."""
    near = difflib.get_close_matches(str(name), known, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    return f"{name}{suggestion} ({noun}: {', '.join(known) or 'none'})"


def defaults_of(contract: list[Parameter]) -> dict[str, Any]:
    """What each parameter is where nothing is given."""
    return {parameter.name: parameter.default for parameter in contract}


def changed(contract: list[Parameter], checked: dict[str, Any]) -> dict[str, Any]:
    """The checked values that are not the notebook's defaults."""
    defaults = defaults_of(contract)
    return {name: value for name, value in checked.items() if value != defaults[name]}


def section(content: Any, stem: str) -> dict[str, Any]:
    """What a parameter file says to the notebook `stem`: its section, or all of a flat file."""
    return (content.get(stem) or {}) if sections(content) else (content or {})


def sections(content: Any) -> list[str]:
    """The notebooks that a parameter file has sections for; none for a flat file."""
    if not isinstance(content, dict | None):
        raise ParameterError("a parameter file must be a mapping from names to values")
    content = content or {}
    found = [key for key in content if _SECTION.fullmatch(str(key))]
    if found and len(found) != len(content):
        stray = next(key for key in content if key not in found)
        raise ParameterError(f"{stray} stands outside the notebooks' sections of its file")
    stems = [path.stem for path in all_notebooks()]
    for key in found:
        if key not in stems:
            raise ParameterError(f"no notebook {suggest(key, stems, 'notebooks')}")
    return found
