"""What every method of the comparison is: attributions of images for targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from captum_mi.model.hooks import LayerOutput
from captum_mi.model.sites import Site, find_sites

#: How signed attributions become heat: as they are, their size, or what speaks for the target.
Reduction = Literal["signed", "absolute", "positive"]


class NotApplicable(Exception):
    """A method cannot explain a network; says why."""


_AREA = 128 * 128  # larger images come in smaller batches


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        explain: from images ``(n, 3, H, W)`` and targets ``(n,)`` to attributions of the images'
            shape; also of larger images.
        reductions: what is compared of them, each in a row of its own.
        batch: images per call.
    """

    explain: Callable[[Tensor, Tensor], Tensor]
    reductions: tuple[Reduction, ...] = ("signed",)
    batch: int = 20


@contextmanager
def tracing() -> Iterator[None]:
    """Where ``torch.fx`` traces a network, which raises whatever its code does without numbers.

    Raises:
        NotApplicable: then.
    """
    try:
        yield
    except Exception as error:
        raise NotApplicable(f"torch.fx cannot trace the network: {error}") from error


def site_of(layer: str, output: LayerOutput, images: Tensor) -> Site:
    """A layer's output, of images, as features ``(N, C, h, w)``.

    Raises:
        NotApplicable: if it has no two position axes.
    """
    try:
        (site, *_), _ = find_sites(layer, output, [tuple(images.shape)])
    except ValueError as error:
        raise NotApplicable(str(error)) from error
    if site.position_axes != 2:
        raise NotApplicable(f"{layer} has {site.position_axes} position axes")
    return site


def reduced(attributions: Tensor, reduction: Reduction) -> Tensor:
    """Each channel's attributions, reduced; heat is their sum over channels."""
    if reduction == "absolute":
        return attributions.abs()
    return attributions.clamp_min(0) if reduction == "positive" else attributions


def per_channel(heat: Tensor, images: Tensor) -> Tensor:
    """Heat ``(n, H, W)`` shared equally among the images' channels."""
    channels = images.shape[1]
    return (heat / channels)[:, None].expand(-1, channels, -1, -1).contiguous()


def explained(method: Method, images: Tensor, targets: Tensor, name: str) -> Tensor:
    """Attributions of all images, a batch at a time; mosaics, four times as large, in fewer."""
    if not len(images):
        return images
    size = max(1, method.batch * _AREA // max(_AREA, images.shape[2] * images.shape[3]))
    pairs = list(zip(images.split(size), targets.split(size)))
    parts = [method.explain(x, t).detach().float() for x, t in tqdm(pairs, name, unit="batch")]
    return torch.cat(parts)
