"""Progress bars: of several processes the first one shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from captum_mi import ranks

__all__ = ["bar"]


def bar(iterable: Iterable[Any], description: str, unit: str, progress: bool) -> Any:
    """The iterable, with a bar in notebooks and terminals if ``progress`` is asked for."""
    shown = progress and ranks.is_first()
    return tqdm(iterable, description, unit=unit, disable=not shown, dynamic_ncols=True)
