"""Options: one of a few words, a whole number, or a number."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, get_args

__all__ = ["check_choice", "number", "whole"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ``ValueError`` if a value is not among the choices of a ``Literal`` type."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}; got {value!r}")


def whole(name: str, value: Any, least: int) -> int:
    """An integer, NumPy's too, as Python's own.

    Raises:
        ValueError: for anything else, or less.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {value!r}")
    return int(value)


def number(name: str, value: Any, positive: bool = False) -> float:
    """A finite number of at least 0, or above, as Python's own; also a tensor of one element.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, str) or not (found > 0 if positive else found >= 0) or found == math.inf:
        raise ValueError(f"{name} must be a number {'>' if positive else '>='} 0; got {value!r}")
    return found
