"""Does the prediction follow the heat? Tiles are removed in the order of their relevance.

Tiles of equal heat go in an order drawn at random: another one for each row of a batch, the same
in every call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from captum_mi.metrics.removal import Score, scores_without, tile_heat

__all__ = ["Curves", "degradation", "deletion", "insertion"]


_LEAST_BLUR = 5  # pixels


class Curves(NamedTuple):
    """Result of :func:`degradation`.

    Attributes:
        area: area(LeRF) - area(MoRF) of each image, ``(N,)``; 0 for a random order.
        lerf: score while the least relevant tiles go first, ``(N, points)``: at 0 tiles removed,
            then at every multiple of ``tiles_per_step``, then at all.
        morf: score while the most relevant tiles go first, ``(N, points)``.
        removed: share of the tiles removed at each point, ``(points,)``.
    """

    area: Tensor
    lerf: Tensor
    morf: Tensor
    removed: Tensor


@torch.no_grad()
def degradation(
    score: Score,
    images: Tensor,
    maps: Tensor,
    target: Tensor,
    tile: int = 8,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
    tiles_per_step: int = 1,
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
        baseline: what removed pixels become; broadcastable to the images.
        batch_size: images per call of ``score``.
        tiles_per_step: tiles removed between two points of a curve; more are coarser and cheaper.

    Returns:
        Areas and curves, on the device of ``images``.

    Raises:
        ValueError: for maps of another shape than the images', with NaN or Inf, a tile that does
            not divide, or ``tiles_per_step`` below 1.

    Example: the score is a pixel, which one map finds and the other does not::

        >>> images = torch.ones(2, 1, 2, 2)
        >>> maps = torch.tensor([[[3.0, 2.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 3.0]]])
        >>> case = lambda x, target: x[:, 0, 0, 0], images, maps, torch.zeros(2, dtype=torch.long)
        >>> degradation(*case, tile=1).area
        tensor([ 0.7500, -0.7500])
        >>> insertion(*case, tile=1, baseline=0), deletion(*case, tile=1)
        (tensor([0.8750, 0.1250]), tensor([0.1250, 0.8750]))
    """
    rank = _relevance_rank(images, maps, tile)
    last = rank.shape[1] - 1
    removed = _removed(last + 1, tiles_per_step, images.device)
    lerf = _curve(score, images, rank, removed, target, tile, baseline, batch_size)
    morf = _curve(score, images, last - rank, removed, target, tile, baseline, batch_size)
    area = _area(lerf, removed) - _area(morf, removed)
    return Curves(area, lerf, morf, removed / removed[-1])


@torch.no_grad()
def deletion(
    score: Score,
    images: Tensor,
    maps: Tensor,
    target: Tensor,
    tile: int = 8,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
    tiles_per_step: int = 1,
) -> Tensor:
    """Area under the score while the most relevant tiles are deleted: lower is better.

    Source: Petsiuk et al., 2018, https://arxiv.org/abs/1806.07421. With the same baseline,
    degradation is insertion - deletion. Arguments, errors and an example: see :func:`degradation`.

    Returns:
        ``(N,)``.
    """
    rank = _relevance_rank(images, maps, tile)
    last = rank.shape[1] - 1
    removed = _removed(last + 1, tiles_per_step, images.device)
    curve = _curve(score, images, last - rank, removed, target, tile, baseline, batch_size)
    return _area(curve, removed)


@torch.no_grad()
def insertion(
    score: Score,
    images: Tensor,
    maps: Tensor,
    target: Tensor,
    tile: int = 8,
    baseline: float | Tensor | None = None,
    batch_size: int = 256,
    tiles_per_step: int = 1,
) -> Tensor:
    """Area under the score while the most relevant tiles are put in: higher is better.

    Source: Petsiuk et al., 2018, https://arxiv.org/abs/1806.07421. Arguments, errors and an
    example: see :func:`degradation`; the canvas is another one.

    Args:
        baseline: the canvas, broadcastable to the images; ``None`` for each image blurred
            beyond the size of a tile, by 2.5 pixels at least, as in the source.

    Returns:
        ``(N,)``.
    """
    # Tiles that are put in most relevant first are, backwards, removed least relevant first.
    rank = _relevance_rank(images, maps, tile)
    canvas = _blurred(images, tile) if baseline is None else baseline
    removed = _removed(rank.shape[1], tiles_per_step, images.device)
    curve = _curve(score, images, rank, removed, target, tile, canvas, batch_size)
    return _area(curve, removed)


def _blurred(images: Tensor, tile: int) -> Tensor:
    sigma = max(tile, _LEAST_BLUR) / 2
    # Odd, and per axis no longer than the image; torchvision has width before height.
    sizes = [2 * int(min(4 * sigma, length + 1) // 2) - 1 for length in images.shape[:1:-1]]
    return gaussian_blur(images, sizes, [sigma, sigma])


def _removed(tiles: int, per_step: int, device: torch.device) -> Tensor:
    """Numbers of tiles removed at each point of a curve, from 0 to all."""
    if per_step < 1:
        raise ValueError(f"tiles_per_step must be at least 1; got {per_step}")
    return torch.tensor([*range(0, tiles, per_step), tiles], device=device)


def _area(curve: Tensor, removed: Tensor) -> Tensor:
    return torch.trapezoid(curve, (removed / removed[-1]).to(curve), dim=1)


def _relevance_rank(images: Tensor, maps: Tensor, tile: int) -> Tensor:
    """Rank of each tile by mean heat, ``(N, tiles)``; 0 is the least relevant."""
    heat = tile_heat(images, maps, tile)
    drawn = torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))
    shuffled = drawn.argsort(1).to(heat.device)
    order = shuffled.gather(1, heat.gather(1, shuffled).argsort(dim=1, stable=True))
    return order.argsort(1)


def _curve(
    score: Score,
    images: Tensor,
    removal: Tensor,
    removed: Tensor,
    target: Tensor,
    tile: int,
    baseline: float | Tensor,
    batch_size: int,
) -> Tensor:
    """Scores ``(N, points)`` once the tiles of the lowest removal ranks have gone."""
    gone = removal[:, None] < removed[:, None]
    return scores_without(score, images, gone, target, tile, baseline, batch_size)
