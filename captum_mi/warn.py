"""Warnings that name the user's line, however deep inside they arise."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

_INSIDE = ("captum_mi", "captum", "torch")


def warn(message: str) -> None:
    """A ``UserWarning`` at the nearest line outside of this package, Captum and PyTorch."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in _INSIDE
