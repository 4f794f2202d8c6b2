"""Does the prediction follow the heat? Tiles are removed in the order of their relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Curves", "degradation"]


class Curves(NamedTuple):
    """Result of :func:`degradation`.

    Attributes:
        area: area(LeRF) - area(MoRF) of each image, ``(N,)``; 0 for a random order.
        lerf: score while the least relevant tiles go first, ``(N, tiles + 1)``.
        morf: score while the most relevant tiles go first, ``(N, tiles + 1)``.
    """

    area: Tensor
    lerf: Tensor
    morf: Tensor


@torch.no_grad()
def degradation(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    target: Tensor,
    tile: int = 8,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
) -> Curves:
    """MoRF and LeRF curves and the area between them.

    Tiles are ranked by mean heat and set to the baseline one after another, both end points (all
    kept, all removed) included. Sources: Samek et al., 2017, https://arxiv.org/abs/1509.06321;
    Schulz et al., 2020, https://arxiv.org/abs/2001.00396.

    Args:
        score: ``(images, target) -> (N,)``, for example the softmax probability of the target.
        images: ``(N, C, H, W)``; not changed.
        maps: heat ``(N, H, W)``.
        target: class of each image ``(N,)``.
        tile: side of a tile in pixels; divides H and W.
        baseline: what removed pixels become; broadcastable to an image.
        batch_size: images per call of ``score``.

    Returns:
        Areas and curves, on the device of ``images``.
    """
    n, _, h, w = images.shape
    if maps.shape != (n, h, w) or h % tile or w % tile:
        raise ValueError(
            f"expected maps {(n, h, w)} for images {tuple(images.shape)}, and a tile that "
            f"divides height and width; got maps {tuple(maps.shape)}, tile {tile}"
        )
    heat = F.avg_pool2d(maps[:, None].float(), tile).flatten(1)
    rank = heat.argsort(dim=1, stable=True).argsort(dim=1, stable=True)  # 0: least relevant
    tiles = heat.shape[1]
    lerf = _curve(score, images, rank, target, tile, baseline, batch_size)
    morf = _curve(score, images, tiles - 1 - rank, target, tile, baseline, batch_size)
    area = torch.trapezoid(lerf - morf, dx=1 / tiles, dim=1)
    return Curves(area, lerf, morf)


def _curve(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    removal: Tensor,
    target: Tensor,
    tile: int,
    baseline: float | Tensor,
    batch_size: int,
) -> Tensor:
    """Scores ``(N, tiles + 1)`` after tiles of removal rank < step have gone, for every step."""
    n, _, h, w = images.shape
    steps = torch.arange(removal.shape[1] + 1, device=images.device)
    baseline = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    values = []
    pairs = torch.cartesian_prod(torch.arange(n, device=images.device), steps)
    for i, step in (pair.unbind(1) for pair in pairs.split(batch_size)):
        gone = (removal[i] < step[:, None]).reshape(-1, 1, h // tile, w // tile)
        gone = gone.repeat_interleave(tile, 2).repeat_interleave(tile, 3)
        values.append(score(torch.where(gone, baseline, images[i]), target[i]))
    return torch.cat(values).reshape(n, -1)
