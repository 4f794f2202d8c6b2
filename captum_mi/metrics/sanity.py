"""Do maps depend on what the model has learned? Parameters are randomised from the top down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_mi.model.preserve import isolated_randomness

__all__ = ["Cascade", "cascading_randomization", "structural_similarity"]


_WINDOW = 11  # pixels, of SSIM with Gaussian weights


class Cascade(NamedTuple):
    """Result of :func:`cascading_randomization`.

    Attributes:
        layers: what each step randomised, on top of the steps before.
        similarity: structural similarity with the maps of the trained model, ``(steps, N)``.
    """

    layers: list[str]
    similarity: Tensor


def structural_similarity(maps: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (SSIM) of maps ``(N, H, W)``, each scaled to [0, 1] first: ``(N,)``.

    Source: Wang et al., 2004; by scikit-image, Gaussian weights.

    Raises:
        ImportError: without scikit-image.
        ValueError: unless both are of one shape, with sides of the window's 11 pixels at least.
    """
    if maps.dim() != 3 or maps.shape != reference.shape or min(maps.shape[1:]) < _WINDOW:
        raise ValueError(
            f"expected maps (N, H, W) of one shape, H and W at least {_WINDOW}; got "
            f"{tuple(maps.shape)} and {tuple(reference.shape)}"
        )
    try:
        from skimage.metrics import structural_similarity as ssim
    except ImportError as error:
        raise ImportError("structural_similarity needs scikit-image: pip install scikit-image"
                          ) from error
    pairs = zip(*(_unit_range(one).double().cpu().numpy() for one in (maps, reference)))
    return torch.tensor(np.array([
        ssim(a, b, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
        for a, b in pairs
    ]), dtype=torch.float32)


def _unit_range(maps: Tensor) -> Tensor:
    low, high = maps.flatten(1).aminmax(dim=1)
    scale = (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    return (maps - low[:, None, None]) / scale[:, None, None]


def cascading_randomization(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Cascade:
    """Similarity of maps while more and more of a model's parameters are initialised afresh.

    A map that explains the model must change. Parameters are reset by the modules that own them;
    where those cannot, they are drawn from a normal distribution with the mean and the standard
    deviation that they have. Source: Adebayo et al., 2018, https://arxiv.org/abs/1810.03292.

    Args:
        model: the trained model; not changed.
        explain: returns the maps ``(N, H, W)`` of a copy of the model, always for the same
            images and targets. With a fit of this package it may bind it to the copy
            (``attr.bind(copy)``) or fit anew on the copy: two different questions.
        layers: names of modules in the order in which they are randomised; ``""`` is all of the
            model. Default: the children of the model that have parameters, the last one first,
            and then all, if the model has parameters of its own, such as a class token.
        seed: of the fresh parameters. Global random states are left as they were.

    Returns:
        One step per layer.

    Example::

        >>> model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 1))
        >>> images = torch.randn(2, 1, 16, 16)
        >>> result = cascading_randomization(model, lambda copy: copy(images)[:, 0].detach())
        >>> result.layers, result.similarity.shape
        (['2', '0'], torch.Size([2, 2]))
    """
    if layers is None:
        children = [name for name, child in model.named_children() if len([*child.parameters()])]
        layers = [*children[::-1], *([""] if [*model.parameters(recurse=False)] else [])]
    reference = explain(model)
    randomised = copy.deepcopy(model)
    rows = []
    for step, layer in enumerate(layers):
        with isolated_randomness(seed + step):
            _initialise(randomised.get_submodule(layer))
        rows.append(structural_similarity(explain(randomised), reference))
    return Cascade(list(layers), torch.stack(rows))


def _initialise(layer: nn.Module) -> None:
    """Reset every parameter of a layer by the module that owns it, or else like it was."""
    for module in layer.modules():
        own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
        before = [parameter.detach().clone() for parameter in own]
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if own and reset is not None:
            reset()
        with torch.no_grad():
            for parameter, old in zip(own, before):
                if torch.equal(parameter, old):  # one that a weight is computed from, too
                    spread = parameter.std(correction=0)
                    parameter.copy_(parameter.mean() + spread * torch.randn_like(parameter))
