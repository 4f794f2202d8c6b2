"""Progress bars: of several processes the first one shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from captum_mi import ranks

__all__ = ["bar"]


def bar(
    iterable: Iterable[Any], description: str, unit: str, progress: bool,
    total: int | None = None, stays: bool = True,
) -> Any:
    """The iterable, with a bar in notebooks and terminals if ``progress`` is asked for.

    Args:
        iterable: what is walked over.
        description: what stands before the bar.
        unit: of what is counted.
        progress: whether a bar is shown.
        total: how many there are, if the iterable does not know.
        stays: whether the bar is left when it is full.
    """
    shown = progress and ranks.rank() == 0
    return tqdm(iterable, description, total, stays, unit=unit, disable=not shown,
                dynamic_ncols=True)
