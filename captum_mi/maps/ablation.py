r"""What a decision loses when a block of the input is removed.

.. math:: \ell_g(c) = \log p(c \mid x) - \log p(c \mid x_{\setminus g}) ,

in nats, where :math:`x_{\setminus g}` has the baseline in block g: negative where the block
speaks against the class. This is occlusion (Zeiler and Fergus, 2014,
https://arxiv.org/abs/1311.2901) by a few blocks that do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = ["MOST_BLOCKS", "ablated", "block_counts", "block_losses"]

#: More of them tell less of a decision than halves of the input do.
MOST_BLOCKS = 9


def block_counts(n: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many blocks along each axis: at most ``n`` in all, as nearly cubes as they can be.

    Example::

        >>> block_counts(9, (96, 96)), block_counts(10, (32, 128)), block_counts(5, (7,))
        ((3, 3), (2, 5), (5,))
    """
    counts: list[int] = []
    for axis, size in enumerate(sizes):
        rest = sizes[axis:]
        side = (math.prod(rest) / n) ** (1 / len(rest))  # of a cube, were they cubes
        count = min(size, n, max(1, round(size / side)))
        counts.append(count)
        n //= count
    return tuple(counts)


def ablated(
    x: Tensor, baseline: Tensor, counts: Sequence[int], first_axis: int
) -> Iterator[Tensor]:
    """An input with the baseline in one block, for each block in the order of their grid.

    Args:
        x: ``(N, ...)``.
        baseline: broadcastable to it.
        counts: blocks along each spatial axis.
        first_axis: the first of the spatial axes.
    """
    baseline = baseline.expand_as(x)
    for place in product(*map(range, counts)):
        block = [slice(None)] * first_axis
        for axis, (i, count) in enumerate(zip(place, counts), first_axis):
            block.append(slice(x.shape[axis] * i // count, x.shape[axis] * (i + 1) // count))
        without = x.clone()
        without[tuple(block)] = baseline[tuple(block)]
        yield without


def block_losses(
    log_probability: Callable[[Tensor], Tensor], whole: Tensor, x: Tensor, baseline: Tensor,
    n: int, first_axis: int, axes: int,
) -> Tensor:
    """What the decision loses with each block.

    Args:
        log_probability: from inputs to ``log p(c)``, ``(N,)``.
        whole: that of ``x``.
        x: the input, ``(N, ...)``.
        baseline: what is put in place of a block, broadcastable to it.
        n: number of blocks, at most.
        first_axis: the first of the spatial axes.
        axes: how many there are.

    Returns:
        ``(N, 1, *counts)``, in nats.
    """
    counts = block_counts(n, x.shape[first_axis : first_axis + axes])
    rest = [log_probability(without) for without in ablated(x, baseline, counts, first_axis)]
    lost = whole[:, None] - torch.stack(rest, 1)
    return lost.view(len(x), 1, *counts)
