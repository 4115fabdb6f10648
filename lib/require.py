"""Checks of arguments: each error names the parameter, its value and what is allowed."""

from numbers import Integral, Real


def require(condition: bool, name: str, value, allowed: str) -> None:
    """Raise a ValueError that names the parameter, its value and what is allowed."""
    if not condition:
        raise ValueError(f"{name}={value!r}: allowed is {allowed}")


def require_int(name: str, value, low: int) -> None:
    """Raise a ValueError unless `value` is a whole number of at least `low`."""
    # an int is told by its type first: steps ask for it, and the rest takes many times as long
    whole = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    ok = whole and value >= low
    require(ok, name, value, f"an int >= {low}")


def require_share(name: str, value, above: float | None = None) -> None:
    """Raise a ValueError unless `value` is a number from 0 to 1, and more than `above`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    ok = number and 0 <= value <= 1 and (above is None or value > above)
    require(ok, name, value, "a number from 0 to 1" + ("" if above is None else f", above {above}"))
