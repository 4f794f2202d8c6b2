"""Do the attributed amounts add up? Sums over random sets of tiles against what they change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.metrics.removal import Score, scores_without, tile_heat

__all__ = ["sensitivity_n"]


@torch.no_grad()
def sensitivity_n(
    score: Score,
    images: Tensor,
    maps: Tensor,
    target: Tensor,
    n_tiles: Sequence[int],
    tile: int = 8,
    samples: int = 50,
    baseline: float | Tensor = 0.0,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """Correlation of the heat in random sets of tiles with the drop of the score without them.

    Source: sensitivity-n (Ancona et al., 2018, https://arxiv.org/abs/1711.06104).

    Args:
        score: ``(images, target) -> (N,)``, for example a logit or a log-probability.
        images: ``(N, C, H, W)``; not changed.
        maps: signed heat ``(N, H, W)``.
        target: class of each image ``(N,)``.
        n_tiles: sizes of the sets, each from 1 to one less than the number of tiles.
        tile: side of a tile in pixels; divides H and W.
        samples: sets of each size; the same ones for every image and map.
        baseline: what removed pixels become; broadcastable to the images.
        batch_size: images per call of ``score``.
        seed: of the sets.

    Returns:
        Pearson correlations ``(N, len(n_tiles))``; 0 where heat or drop does not vary.

    Raises:
        ValueError: for maps of another shape, or sizes out of range.
    """
    heat = tile_heat(images, maps, tile).double()
    tiles = heat.shape[1]
    if not all(1 <= size < tiles for size in n_tiles):
        raise ValueError(f"n_tiles must lie between 1 and {tiles - 1}; got {list(n_tiles)}")
    generator = torch.Generator().manual_seed(seed)

    def scores(gone: Tensor) -> Tensor:
        sets = gone.to(images.device).expand(len(images), -1, -1)
        return scores_without(score, images, sets, target, tile, baseline, batch_size).double()

    whole = scores(torch.zeros(1, tiles, dtype=torch.bool))
    columns = []
    for size in n_tiles:
        order = torch.rand(samples, tiles, generator=generator).argsort(1)
        gone = torch.zeros(samples, tiles, dtype=torch.bool)
        gone = gone.scatter(1, order[:, :size], True)
        columns.append(_correlation(heat @ gone.to(heat).T, whole - scores(gone)))
    return torch.stack(columns, 1).float()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation along axis 1; 0 where either side is constant, up to rounding."""
    (a, a_varies), (b, b_varies) = _standardised(a), _standardised(b)
    return torch.where(a_varies & b_varies, (a * b).sum(1), 0.0)


def _standardised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and length 1, and which rows vary."""
    centred = values - values.mean(1, keepdim=True)
    length = centred.norm(dim=1)
    varies = length > 1e-6 * values.norm(dim=1)
    return centred / length.clamp_min(torch.finfo(length.dtype).tiny)[:, None], varies
