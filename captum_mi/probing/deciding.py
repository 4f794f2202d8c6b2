"""Which layers a prediction depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mi.model.arguments import of_few, rebuilt
from captum_mi.model.hooks import LayerOutput
from captum_mi.model.passes import Pass, Passes

__all__ = ["deciding"]

_EXAMPLES = 2  # to find out


@torch.no_grad()
def deciding(
    passes: Passes, layers: Sequence[str], inputs: tuple[Tensor, ...], args: tuple[Any, ...]
) -> list[str]:
    """Layers on the way to the output: y or the prediction changes with what they return.

    Others, such as the decoder of a model of which only the classes are asked for, or an auxiliary
    classifier, may know of y, but nothing rests on them. Layers of which the model's own code
    cannot take anything else pass.

    Args:
        passes: passes of the model, in eval mode.
        layers: their names; each returns a tensor or a tuple of them.
        inputs: one batch.
        args: additional forward arguments.
    """
    if not layers:
        return []
    few, few_args, before = of_few(passes.first, inputs, args, _EXAMPLES)

    def decides(layer: str) -> bool:
        for sign in (1, -1):  # one of them may be lost, as below 0 or where a softmax levels
            try:
                after = passes.replaced(few, few_args, {layer: _changing(sign)})
            except Exception:  # of the user's code: nothing is known
                return True
            if not _same(before, after):
                return True
        return False

    return [layer for layer in layers if decides(layer)]


def _changing(sign: int) -> Callable[[LayerOutput], LayerOutput]:
    def change(output: LayerOutput) -> LayerOutput:
        if not isinstance(output, Tensor):
            return rebuilt(output, [change(part) for part in output])
        return _changed(output, sign) if output.is_floating_point() else output

    return change


def _changed(features: Tensor, sign: int) -> Tensor:
    places = torch.arange(features.numel(), device=features.device).view(features.shape)
    size = 1 + features.abs().mean()
    return features + (sign * size * places.cos()).to(features.dtype)


def _same(one: Pass, other: Pass) -> bool:
    return torch.equal(one.y, other.y) and torch.equal(one.prediction, other.prediction)
