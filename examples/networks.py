"""Weights of networks: from a file, or torchvision's by name."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights


def classes_of(state: dict[str, Tensor]) -> int:
    """How many classes a ``state_dict`` is of: the length of its last weight or bias."""
    return len([value for value in state.values() if value.dim()][-1])


def torchvision_weights(model: str, name: str) -> WeightsEnum:
    """Weights that torchvision has for a model.

    Args:
        model: torchvision name.
        name: of the weights, such as ``DEFAULT``.

    Raises:
        FileNotFoundError: if there are none of that name, as of a mistyped path.
    """
    there = get_model_weights(model)
    if name not in there.__members__:
        raise FileNotFoundError(
            f"{name!r} is neither a file nor weights of {model}; torchvision has "
            f"{[*there.__members__]}"
        )
    return there[name]
