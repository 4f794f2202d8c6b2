"""Does a mask give the class away? What is read from the mask alone must stay at chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Leak", "mask_leak"]


class Leak(NamedTuple):
    """Result of :func:`mask_leak`, one value per image.

    Attributes:
        nats: log-probability that the mask's own class gains over another image's mask, ``(N,)``.
        found: 1 where the mask's own class is predicted, ``(N,)``.
        chance: 1 where it is predicted with another image's mask, ``(N,)``.
    """

    nats: Tensor
    found: Tensor
    chance: Tensor


@torch.no_grad()
def mask_leak(
    predict: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    batch_size: int = 64,
    seed: int = 0,
) -> Leak:
    """Evidence for a class in its mask, worn by the features of an image of another class.

    A mask that is inferred from an image might encode the image's class in its shape, which an
    explanation must not do (Jethani et al., 2021, https://arxiv.org/abs/2103.01890). Each image's
    mask is laid on the features of an image of another class; the prediction for the mask's class
    is compared with the one under the mask of a third image, whose class is neither.

    Args:
        predict: from images whose masks and images whose features are taken, both
            ``(n, C, H, W)``, to logits ``(n, classes)``. For example
            ``lambda masks, features: attr.predict_noised(features, alpha_inputs=masks)``.
        images: ``(N, C, H, W)``.
        labels: class of each image ``(N,)``, of three classes at least.
        batch_size: images per call of ``predict``.
        seed: of the drawn partners.

    Returns:
        Values near 0 nats, and as many found as by chance, if nothing leaks.

    Raises:
        ValueError: if an image has no partners of two other classes.

    Example::

        >>> images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
        >>> blind = lambda masks, features: torch.zeros(len(masks), 3)
        >>> mask_leak(blind, images, labels).nats.abs().max()
        tensor(0.)
    """
    labels = labels.to(images.device)
    features, others = _partners(labels.cpu(), seed)
    columns = []
    for rows in torch.arange(len(images)).split(batch_size):
        own = labels[rows, None]
        content = images[features[rows]]
        columns.append(torch.stack([
            torch.stack([log_p.gather(1, own)[:, 0], (log_p.argmax(1) == own[:, 0]).to(log_p)])
            for log_p in (
                F.log_softmax(predict(images[masks], content), 1)
                for masks in (rows, others[rows])
            )
        ]))
    (own_nats, found), (other_nats, chance) = torch.cat(columns, 2)
    return Leak(own_nats - other_nats, found, chance)


def _partners(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """For each image one of another class, and one of a third class."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in labels:
        candidates = (labels != label).nonzero()[:, 0]
        one = _any_of(candidates, generator, label)
        rest = candidates[labels[candidates] != labels[one]]
        first.append(one)
        second.append(_any_of(rest, generator, label))
    return torch.stack(first), torch.stack(second)


def _any_of(candidates: Tensor, generator: torch.Generator, label: Tensor) -> Tensor:
    if not len(candidates):
        raise ValueError(
            f"images of class {int(label)} have no partners of two other classes; expected "
            "images of at least three classes"
        )
    return candidates[torch.randint(len(candidates), (), generator=generator)]
