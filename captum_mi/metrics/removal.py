"""Tiles of images, and scores without some of them: what perturbation metrics share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Score", "check_maps", "scores_without", "tile_heat"]

#: ``(images, target) -> (N,)``, for example the softmax probability of the target.
Score = Callable[[Tensor, Tensor], Tensor]


def check_maps(maps: Tensor) -> None:
    """Raise ``ValueError`` for maps with NaN or Inf, which cannot be ranked."""
    bad = (~maps.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"maps {bad} hold NaN or Inf; expected finite heat")


def tile_heat(images: Tensor, maps: Tensor, tile: int) -> Tensor:
    """Mean heat of each tile, ``(N, tiles)``, row by row.

    Raises:
        ValueError: for maps of another shape than the images', with NaN or Inf, or a tile that
            does not divide.
    """
    n, _, h, w = images.shape
    if maps.shape != (n, h, w) or tile < 1 or h % tile or w % tile:
        raise ValueError(
            f"expected maps {(n, h, w)} for images {tuple(images.shape)}, and a tile that "
            f"divides height and width; got maps {tuple(maps.shape)}, tile {tile}"
        )
    check_maps(maps)
    return F.avg_pool2d(maps[:, None].float(), tile).flatten(1)


def scores_without(
    score: Score,
    images: Tensor,
    gone: Tensor,
    target: Tensor,
    tile: int,
    baseline: float | Tensor,
    batch_size: int,
) -> Tensor:
    """Scores ``(N, K)`` of images without sets of tiles.

    Args:
        score: what is measured.
        images: ``(N, C, H, W)``; not changed.
        gone: ``(N, K, tiles)``, boolean: K sets for each image.
        target: class of each image ``(N,)``.
        tile: side of a tile in pixels.
        baseline: what removed pixels become; broadcastable to the images.
        batch_size: images per call of ``score``.

    Raises:
        ValueError: for targets or scores that are not one for each image, or scores with NaN.
    """
    if not isinstance(target, Tensor) or target.shape[:1] != images.shape[:1]:
        got = tuple(target.shape) if isinstance(target, Tensor) else repr(target)
        raise ValueError(f"expected a target for each of {len(images)} images; got {got}")
    h, w = images.shape[2:]
    device = images.device
    canvas = torch.as_tensor(baseline, dtype=images.dtype, device=device).expand(images.shape)
    n, k = gone.shape[:2]
    pairs = torch.cartesian_prod(torch.arange(n, device=device), torch.arange(k, device=device))
    values = []
    for i, j in (pair.unbind(1) for pair in pairs.split(batch_size)):
        mask = gone[i, j].view(-1, 1, h // tile, w // tile)
        mask = mask.repeat_interleave(tile, 2).repeat_interleave(tile, 3)
        values.append(score(torch.where(mask, canvas[i], images[i]), target[i]))
        if values[-1].shape != i.shape:
            raise ValueError(
                f"score returned {tuple(values[-1].shape)} for {len(i)} images; expected a value "
                "for each"
            )
    scores = torch.cat(values).reshape(n, k)
    if scores.isnan().any():
        bad = scores.isnan().any(1).nonzero().flatten().tolist()
        raise ValueError(f"score is NaN for images {bad} with tiles removed")
    return scores
