"""What takes the place of a block or half of an input while a decision's losses are measured."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr._utils.common import _format_input_baseline, _validate_input
from torch import Tensor

from captum_mi.maps.question import Question

__all__ = ["tensors_of"]


def tensors_of(
    baselines: Any, inputs: tuple[Tensor, ...], question: Question
) -> tuple[Tensor, ...]:
    """Baselines in any of Captum's forms as tensors of the inputs' shapes, if they are needed.

    Raises:
        ValueError: for baselines where nothing is replaced, or that the inputs cannot hold.
        AssertionError: for another form or shape, as Captum raises it.
    """
    if not question.refine_steps:
        if baselines is not None:
            raise ValueError(
                "baselines are what replaces parts of the input, which only refine_steps=n does; "
                "got baselines and refine_steps=0"
            )
        return ()
    inputs, formatted = _format_input_baseline(inputs, baselines)
    _validate_input(inputs, formatted)
    blanks = []
    for x, baseline in zip(inputs, formatted):
        given = torch.as_tensor(baseline, device=x.device)
        blank = given.to(x.dtype)
        if not x.is_floating_point() and not torch.equal(blank.to(given.dtype), given):
            raise ValueError(
                f"baselines={baseline} cannot be values of an input of {x.dtype}; pass integers")
        blanks.append(blank.expand_as(x))
    return tuple(blanks)
