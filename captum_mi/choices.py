"""Options that are one of a few words."""

from __future__ import annotations

from typing import Any, get_args

__all__ = ["check_choice"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ``ValueError`` if a value is not among the choices of a ``Literal`` type."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}; got {value!r}")
