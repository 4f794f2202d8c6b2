"""Does the heat lie on the object? Metrics against boxes or masks, one value per image.

Of equally hot pixels none comes first: each counts as the mean of them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mi.metrics.removal import check_maps

__all__ = ["effective_heat_ratio", "grid_pointing", "inside_box", "pointing"]


def _check(maps: Tensor, masks: Tensor) -> None:
    if maps.dim() != 3 or masks.shape != maps.shape or masks.dtype != torch.bool:
        raise ValueError(
            "expected maps (N, H, W) and boolean masks of the same shape; got maps "
            f"{tuple(maps.shape)} and {masks.dtype} masks {tuple(masks.shape)}. Sum an "
            "attribution over its channels first"
        )
    check_maps(maps)
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"masks {empty} are empty; expected at least one pixel of object in each")


def _hottest_first(heat: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Heat ``(N, pixels)`` in falling order, and how much object the first k pixels hold."""
    heat, order = heat.sort(dim=1, descending=True)
    hits = masks.flatten(1).gather(1, order).double()
    level = torch.zeros_like(order)  # number of the group of equals
    level[:, 1:] = (heat[:, 1:] != heat[:, :-1]).cumsum(1)
    total, size = (
        torch.zeros_like(hits).scatter_add(1, level, one) for one in (hits, torch.ones_like(hits))
    )
    return heat, (total / size.clamp_min(1)).gather(1, level).cumsum(1)


def inside_box(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the top-n pixels that lie on the object, n being the object's pixels.

    With boxes as in Schulz et al., 2020, https://arxiv.org/abs/2001.00396; with masks it is the
    relevance rank accuracy of Arras et al., 2022, https://arxiv.org/abs/2003.07258.

    Args:
        maps: heat ``(N, H, W)``.
        masks: object ``(N, H, W)``, boolean.

    Returns:
        ``(N,)`` in [0, 1]; a random map, or a flat one, scores the object's share of the image.

    Raises:
        ValueError: for maps and masks of other shapes, NaN or Inf, or a mask without a pixel.

    Example::

        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> inside_box(maps, masks)  # one of the two hottest pixels
        tensor([0.5000])
    """
    _check(maps, masks)
    _, hits = _hottest_first(maps.flatten(1), masks)
    n = masks.flatten(1).sum(1)
    return (hits.gather(1, n[:, None] - 1)[:, 0] / n).float()


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Pointing game: whether the maximum lies on the object.

    Of several equal maxima, the share on the object counts. Source: Zhang et al., 2018,
    https://arxiv.org/abs/1608.00507.

    Args:
        maps: heat ``(N, H, W)``.
        masks: object ``(N, H, W)``, boolean.

    Returns:
        ``(N,)`` in [0, 1].

    Raises:
        ValueError: for maps and masks of other shapes, NaN or Inf, or a mask without a pixel.

    Example::

        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> pointing(maps, masks)
        tensor([1.])
    """
    _check(maps, masks)
    flat = maps.flatten(1)
    top = flat == flat.amax(1, keepdim=True)
    return (top & masks.flatten(1)).sum(1) / top.sum(1)


def effective_heat_ratio(maps: Tensor, masks: Tensor, levels: int = 19) -> Tensor:
    """Effective heat ratio (Zhang et al., InputIBA, 2021, https://arxiv.org/abs/2110.01471).

    For each mass quantile 5 %, ..., 95 % the smallest set of pixels that holds that share of
    the positive heat; the share of the set that lies on the object, averaged over quantiles.
    It depends on the order and the relative size of the heat alone, not on its scale.

    Args:
        maps: heat ``(N, H, W)``; negative heat counts as none.
        masks: object ``(N, H, W)``, boolean.
        levels: number of quantiles, evenly inside (0, 1).

    Returns:
        ``(N,)`` in [0, 1]; a map without positive heat scores as a uniform one.

    Raises:
        ValueError: for maps and masks of other shapes, NaN or Inf, a mask without a
            pixel, or fewer than one level.

    Example::

        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> effective_heat_ratio(maps, masks, levels=1)  # two pixels hold half of the heat
        tensor([0.5000])
    """
    _check(maps, masks)
    if levels < 1:
        raise ValueError(f"levels must be at least 1; got {levels}")
    heat = maps.flatten(1).double().clamp_min(0)
    heat = torch.where(heat.sum(1, keepdim=True) > 0, heat, torch.ones_like(heat))
    heat, hits = _hottest_first(heat, masks)
    mass = heat.cumsum(1) / heat.sum(1, keepdim=True)
    quantiles = torch.linspace(0, 1, levels + 2, dtype=mass.dtype, device=mass.device)[1:-1]
    count = torch.searchsorted(mass.contiguous(), quantiles.expand(len(mass), -1).contiguous())
    count = count.clamp_max(mass.shape[1] - 1)
    return (hits.gather(1, count) / (count + 1)).mean(1).float()


def grid_pointing(maps: Tensor, cells: Tensor | Sequence[int]) -> Tensor:
    """Grid pointing game: share of the positive heat of a 2x2 mosaic in the right cell.

    Source: Boehle et al., 2021, https://arxiv.org/abs/2104.00032.

    Args:
        maps: heat ``(N, H, W)`` of mosaics, for the class of one cell each.
        cells: that cell ``(N,)``: 0 top left, 1 top right, 2 bottom left, 3 bottom right.

    Returns:
        ``(N,)`` in [0, 1]; a map without positive heat scores 1/4.

    Raises:
        ValueError: for maps of odd sides, with NaN or Inf, or other cells.

    Example::

        >>> grid_pointing(torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]), [0])
        tensor([0.4000])
    """
    cells = torch.as_tensor(cells)
    even = maps.dim() == 3 and not maps.shape[1] % 2 and not maps.shape[2] % 2
    if not even or cells.shape != maps.shape[:1] or cells.is_floating_point():
        raise ValueError(
            "expected maps (N, H, W) with even H and W and a whole number for each, its cell; got "
            f"maps {tuple(maps.shape)} and {cells.dtype} cells {tuple(cells.shape)}"
        )
    if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) <= 3:
        raise ValueError(
            f"cells are 0, 1, 2 or 3; got {int(cells.min())} to {int(cells.max())}")
    check_maps(maps)
    n, h, w = maps.shape
    heat = maps.double().clamp_min(0).reshape(n, 2, h // 2, 2, w // 2).sum((2, 4)).flatten(1)
    heat = torch.where(heat.sum(1, keepdim=True) > 0, heat, torch.ones_like(heat))
    share = heat / heat.sum(1, keepdim=True)
    return share.gather(1, cells[:, None].to(share.device, torch.long))[:, 0].float()
