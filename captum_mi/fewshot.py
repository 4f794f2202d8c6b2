"""Few-shot classification: episodes, and prototypical networks as ordinary Captum models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_mi.choices import check_choice
from captum_mi.model.batches import Batch
from captum_mi.model.modules import device_of
from captum_mi.model.preserve import evaluation_mode

__all__ = ["Draw", "Episode", "EpisodeLoader", "EpisodeSampler", "PrototypicalNetwork",
           "prototypes_of"]

Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class Episode:
    """The ways that a query is told apart by. Not a tensor: Captum passes it on as it is.

    Args:
        prototypes: embedding of each way, ``(ways, D)``.
    """

    prototypes: Tensor

    @property
    def ways(self) -> int:
        return len(self.prototypes)


class PrototypicalNetwork(nn.Module):
    r"""Encoder, then closeness to the prototypes of an episode.

    .. math:: \text{logit}_k = -\|e(x) - c_k\|^2 / \tau \quad\text{or}\quad
              \cos(e(x), c_k) / \tau, \qquad c_k = \text{mean of } e \text{ over way } k

    A model of two arguments, ``network(query, episode)``: in Captum ``query`` is the input and
    the episode an additional forward argument. The prototypes are computed once, by
    :meth:`episode`, so that the encoder runs once in a forward pass and can be hooked.

    Source: Snell et al., 2017, https://arxiv.org/abs/1703.05175.

    Args:
        encoder: from images ``(N, C, H, W)`` to embeddings ``(N, D)``. Default: a torchvision
            ResNet-50 whose ``fc`` returns 64 numbers.
        distance: ``"euclidean"`` (squared) or ``"cosine"``.
        temperature: divides the closeness.

    Example::

        >>> network = PrototypicalNetwork(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
        >>> support, labels = torch.randn(6, 3, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> episode = network.episode(support, labels)
        >>> network(torch.randn(5, 3, 2, 2), episode).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        distance: Distance = "euclidean",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("distance", distance, Distance)
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0; got {temperature}")
        self.encoder = _resnet50() if encoder is None else encoder
        self.distance, self.temperature = distance, temperature

    def forward(self, query: Tensor, episode: Episode) -> Tensor:
        """Logits ``(N, ways)``.

        Raises:
            TypeError: if ``episode`` is no :class:`Episode`.
        """
        _check_episode(episode)
        return self.classify(self.encoder(query), episode)

    def classify(self, embedding: Tensor, episode: Episode) -> Tensor:
        """Logits ``(N, ways)`` of embeddings ``(N, D)``: the downstream network.

        In float32 or better: squares overflow in half precision.
        """
        _check_episode(episode)
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        prototypes = episode.prototypes.to(embedding)
        if self.distance == "cosine":
            closeness = F.normalize(embedding, dim=1) @ F.normalize(prototypes, dim=1).T
        else:
            closeness = -(embedding[:, None] - prototypes).square().sum(2)
        return closeness / self.temperature

    def episode(self, support: Tensor, labels: Tensor) -> Episode:
        """Prototypes of support images, in the mode that the network is in: call ``eval()`` first
        unless it is being trained.

        Args:
            support: images ``(S, C, H, W)``.
            labels: way of each, ``(S,)``, numbered from 0; each way has at least one.

        Raises:
            ValueError: for embeddings that are no ``(S, D)``, labels of another length or type,
                or a way without support.
        """
        return Episode(prototypes_of(self.encoder(support), labels))


def _check_episode(episode: object) -> None:
    if not isinstance(episode, Episode):
        raise TypeError(
            f"episode is a {type(episode).__name__}; expected an Episode, made of support images "
            "by network.episode(support, labels)"
        )


def prototypes_of(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean embedding ``(ways, D)`` of each way, from embeddings ``(S, D)`` and ways ``(S,)``."""
    if embeddings.dim() != 2:
        raise ValueError(
            f"the encoder returned {tuple(embeddings.shape)}; expected an embedding (S, D) for "
            "each image, such as after nn.Flatten()"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or int(labels.min()) < 0:
        raise ValueError(
            f"labels are {labels.dtype} from {labels.min().item()}; expected integers from 0")
    if labels.shape != (len(embeddings),):
        raise ValueError(
            f"got {len(embeddings)} support images and labels {tuple(labels.shape)}; expected a "
            "way for each image"
        )
    member = F.one_hot(labels.to(embeddings.device, torch.long)).to(embeddings)
    count = member.sum(0)
    if not bool((count > 0).all()):
        absent = int((count == 0).nonzero()[0])
        raise ValueError(f"way {absent} has no support image; number the ways from 0")
    return (member / count).T @ embeddings


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    return resnet50(num_classes=64)


class Draw(NamedTuple):
    """One episode as indices into a dataset.

    Attributes:
        support: ``ways x shots`` indices, way after way.
        query: ``ways x queries`` indices, way after way.
        classes: the dataset's class of each way.
    """

    support: list[int]
    query: list[int]
    classes: list[int]


class EpisodeSampler:
    """Draws episodes; the same ones on every walk.

    Args:
        labels: class of each example of a dataset.
        ways: classes in an episode.
        shots: support images of each.
        queries: query images of each.
        episodes: number of episodes.
        seed: of the draw.

    Raises:
        ValueError: for labels that are no integers, one for each example, or if too few classes
            have enough images; says how many do.

    Example::

        >>> sampler = EpisodeSampler([0, 0, 0, 1, 1, 1, 2, 2, 2], ways=2, shots=1, queries=2,
        ...                          episodes=10)
        >>> draw = next(iter(sampler))
        >>> len(sampler), len(draw.support), len(draw.query)
        (10, 2, 4)
    """

    def __init__(
        self,
        labels: Sequence[int],
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        episodes: int = 600,
        seed: int = 0,
    ) -> None:
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.ways, self.shots, self.queries = ways, shots, queries
        self.episodes, self.seed = episodes, seed
        array = np.asarray(labels)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {array.dtype} of shape {array.shape}; expected the class of each "
                "example, an integer"
            )
        members = {int(label): np.flatnonzero(array == label) for label in np.unique(array)}
        self._members = {k: v for k, v in members.items() if len(v) >= shots + queries}
        if len(self._members) < ways:
            raise ValueError(
                f"{ways} ways of {shots} + {queries} images need {ways} classes of at least "
                f"{shots + queries} images; {len(self._members)} of {len(members)} have them"
            )

    def __len__(self) -> int:
        return self.episodes

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.episodes):
            classes = rng.permutation(list(self._members))[: self.ways].tolist()
            support: list[int] = []
            query: list[int] = []
            for label in classes:
                chosen = rng.permutation(self._members[label])[: self.shots + self.queries]
                support += chosen[: self.shots].tolist()
                query += chosen[self.shots :].tolist()
            yield Draw(support, query, classes)


class EpisodeLoader:
    """Query images with their episode, as ``fit`` and ``information`` take them.

    Args:
        network: computes the prototypes, in eval mode and without gradient.
        dataset: items are ``(image, label)``.
        sampler: draws the episodes.

    Example::

        >>> images = torch.randn(9, 3, 2, 2)
        >>> dataset = torch.utils.data.TensorDataset(images, torch.arange(9) % 3)
        >>> sampler = EpisodeSampler([i % 3 for i in range(9)], ways=2, queries=2, episodes=4)
        >>> network = PrototypicalNetwork(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
        >>> batch = next(iter(EpisodeLoader(network, dataset, sampler)))
        >>> batch.inputs[0].shape, batch.labels
        (torch.Size([4, 3, 2, 2]), tensor([0, 0, 1, 1]))
    """

    def __init__(
        self, network: PrototypicalNetwork, dataset: Dataset[tuple[Tensor, int]],
        sampler: EpisodeSampler,
    ) -> None:
        self.network, self.dataset, self.sampler = network, dataset, sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        ways = torch.arange(self.sampler.ways)
        device = device_of(self.network)
        for draw in self.sampler:
            support, query = (self._images(rows) for rows in (draw.support, draw.query))
            with evaluation_mode(self.network), torch.no_grad():
                episode = self.network.episode(
                    support.to(device), ways.repeat_interleave(self.sampler.shots)
                )
            yield Batch((query,), ways.repeat_interleave(self.sampler.queries), (episode,))

    def _images(self, rows: list[int]) -> Tensor:
        return torch.stack([self.dataset[i][0] for i in rows])
