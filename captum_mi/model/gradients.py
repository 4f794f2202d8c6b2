"""Gradients through the user's model, and what to do where it gives none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

__all__ = ["gradients_of", "no_gradient"]


def gradients_of(
    value: Tensor, variables: Sequence[Tensor], retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Of a scalar by each variable, ``None`` by those that it does not depend on.

    Raises:
        RuntimeError: if the model computes its features anew meanwhile.
    """
    try:
        return torch.autograd.grad(
            value, variables, retain_graph=retain_graph, allow_unused=True)
    except CheckpointError as error:
        raise RuntimeError(
            "activation checkpointing (torch.utils.checkpoint) computes the layers after the "
            "bottleneck anew while gradients are taken, and then without its noise; switch it "
            "off, as with use_checkpoint=False or model.gradient_checkpointing_disable()"
        ) from error


def no_gradient(consequence: str, instead: str) -> RuntimeError:
    """The error where a prediction does not depend on the bottleneck as far as autograd knows."""
    return RuntimeError(
        "the prediction cannot be differentiated by the features of the chosen layers, so "
        f"{consequence}: choose layers that it rests on, with nothing between that detaches it "
        "(torch.no_grad, .detach(), NumPy, quantised modules, torch.utils.checkpoint with "
        f"use_reentrant=True), or {instead}"
    )
