"""Episodes, prototypical networks, and their attribution as ordinary Captum models."""

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import nn
from torch.utils.data import TensorDataset

from captum_mi import InfoBottleneckAttribution
from captum_mi.fewshot import (
    Episode,
    EpisodeLoader,
    EpisodeSampler,
    PrototypicalNetwork,
    prototypes_of,
)


class Encoder(nn.Module):
    """Mean colour of the features, so that a class is a colour."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.pool = nn.AvgPool2d(2)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.fc(self.deep(self.pool(self.stage(x))).mean((2, 3)))


@pytest.fixture
def network():
    return PrototypicalNetwork(Encoder(), temperature=0.5).eval()


@pytest.fixture
def data():
    colours = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(48) % 6
    noise = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(colours[labels] + 0.3 * noise, labels)


def test_prototypes_are_means_and_logits_are_distances(network):
    support, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 1])
    query = torch.randn(2, 3, 8, 8)
    episode = network.episode(support, labels)
    e, q = network.encoder(support), network.encoder(query)
    for k, rows in enumerate(([0, 2], [1, 3, 4])):
        prototype = e[rows].mean(0)
        torch.testing.assert_close(episode.prototypes[k], prototype)
        logit = -((q - prototype) ** 2).sum(1) / 0.5
        torch.testing.assert_close(network(query, episode)[:, k], logit)
    cosine = PrototypicalNetwork(network.encoder, "cosine", 0.1)
    expected = nn.functional.cosine_similarity(q[:, None], episode.prototypes, dim=2) / 0.1
    torch.testing.assert_close(cosine(query, episode), expected)


def test_the_encoder_runs_once_in_a_forward_pass(network):
    episode = network.episode(torch.randn(3, 3, 8, 8), torch.arange(3))
    network.encoder.calls = 0
    network(torch.randn(2, 3, 8, 8), episode)
    assert network.encoder.calls == 1


def test_what_an_episode_must_be(network):
    images = torch.randn(3, 3, 8, 8)
    with pytest.raises(ValueError, match="way 1 has no support image"):
        network.episode(images, torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match=r"3 support images and labels \(2,\)"):
        network.episode(images, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="episode is a Tensor; expected an Episode"):
        network(images, images)
    with pytest.raises(TypeError, match="episode is a Tensor; expected an Episode"):
        network.classify(torch.randn(3, 4), torch.randn(2, 4))
    for labels in (torch.zeros(3), torch.tensor([0, -1, 1])):
        with pytest.raises(ValueError, match="expected integers from 0"):
            network.episode(images, labels)
    with pytest.raises(ValueError, match=r"encoder returned \(3, 4, 1, 1\); expected an embed"):
        prototypes_of(torch.randn(3, 4, 1, 1), torch.arange(3))
    small = network.episode(images, torch.arange(3, dtype=torch.uint8))
    expected = network.episode(images, torch.arange(3))
    torch.testing.assert_close(small.prototypes, expected.prototypes)
    with pytest.raises(ValueError, match="distance must be one of .* got 'l1'"):
        PrototypicalNetwork(Encoder(), "l1")
    with pytest.raises(ValueError, match="temperature must be greater than 0; got 0"):
        PrototypicalNetwork(Encoder(), temperature=0)


def test_episodes_are_seeded_and_disjoint():
    labels = [i % 7 for i in range(70)]
    sampler = EpisodeSampler(labels, ways=4, shots=2, queries=3, episodes=20, seed=5)
    draws = list(sampler)
    assert draws == list(sampler)
    assert draws != list(EpisodeSampler(labels, 4, 2, 3, 20, seed=6))
    for support, query, classes in draws:
        assert len(set(classes)) == 4
        assert not set(support) & set(query)
        assert len(set(support)) == 8
        assert len(set(query)) == 12
        assert [labels[i] for i in support] == [c for c in classes for _ in range(2)]
        assert [labels[i] for i in query] == [c for c in classes for _ in range(3)]


def test_too_few_classes_for_an_episode():
    with pytest.raises(ValueError, match=r"at least 4 images; 1 of 2 have them"):
        EpisodeSampler([0, 0, 0, 0, 1], ways=2, shots=1, queries=3)
    with pytest.raises(ValueError, match="shots must be at least 1; got 0"):
        EpisodeSampler([0, 0, 1, 1], ways=2, shots=0, queries=1)


def fitted_on_episodes(network, data, quick_fit, **options):
    sampler = EpisodeSampler(data.tensors[1].tolist(), ways=3, queries=4, episodes=6)
    attr = InfoBottleneckAttribution(
        network, ["encoder.stage", "encoder.deep"], global_layer="encoder.fc",
        downstream=network.classify, marginal="uniform",
    )
    return quick_fit(attr, EpisodeLoader(network, data, sampler), **options)


def test_one_fit_serves_every_later_episode(network, data, quick_fit):
    """Also of another number of ways; maps of each of them, and of support images."""
    attr = fitted_on_episodes(network, data, quick_fit)
    images = data.tensors[0]
    for ways in (3, 5):
        episode = network.episode(images[:ways], torch.arange(ways))
        query = images[10:14]
        maps = [attr.attribute(query, t, additional_forward_args=episode) for t in range(ways)]
        assert maps[0].shape == query.shape
        assert not torch.equal(maps[0], maps[1])
        assert attr.evidence(query, episode).shape[:2] == (4, ways)
        support = attr.attribute(images[:ways], torch.arange(ways), episode)
        assert torch.isfinite(support).all()


def test_evidence_of_a_way_is_read_off_the_prototypes(network, data, quick_fit):
    """A way whose prototype is exchanged exchanges its evidence."""
    attr = fitted_on_episodes(network, data, quick_fit)
    episode = network.episode(data.tensors[0][:3], torch.arange(3))
    swapped = Episode(episode.prototypes[[1, 0, 2]])
    query = data.tensors[0][20:22]
    torch.testing.assert_close(
        attr.evidence(query, episode)[:, [1, 0, 2]], attr.evidence(query, swapped)
    )


def test_the_fit_finds_the_colour_of_the_way(network, data, quick_fit):
    """Half of the query shows the way, the other half the average: evidence is on the first."""
    attr = fitted_on_episodes(network, data, quick_fit, steps=150)
    images, labels = data.tensors
    episode = network.episode(images[:3], torch.arange(3))
    query = images[[6 * 5, 6 * 5 + 1, 6 * 5 + 2]].clone()
    query[..., 4:] = images.mean((0, 2, 3))[:, None, None]
    heat = attr.attribute(query, labels[:3], episode, weighting="none").sum(1)
    assert heat[..., :4].mean() > heat[..., 4:].mean()


def test_an_ordinary_model_for_captum(network, data):
    episode = network.episode(data.tensors[0][:3], torch.arange(3))
    query = data.tensors[0][6:8]
    for method, options in (
        (Saliency(network), {}), (IntegratedGradients(network), {"n_steps": 4}),
        (Occlusion(network), {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}),
        (NoiseTunnel(Saliency(network)), {"nt_samples": 2}),
    ):
        maps = method.attribute(query, target=1, additional_forward_args=episode, **options)
        assert maps.shape == query.shape


def test_the_loader_leaves_the_network_as_it_was(network, data):
    network.train()
    sampler = EpisodeSampler(data.tensors[1].tolist(), ways=2, queries=2, episodes=1)
    (batch,) = EpisodeLoader(network, data, sampler)
    assert network.training
    assert not batch.additional_forward_args[0].prototypes.requires_grad
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_half_precision_does_not_overflow():
    """Sums of 100 embeddings of 2,000, and squares of differences of 400, are above 65,504."""
    network = PrototypicalNetwork(nn.Flatten()).half()
    support = torch.full((200, 1, 1, 8), 2000.0).half()
    support[100:] -= 400
    labels = torch.arange(2).repeat_interleave(100)
    episode = network.episode(support, labels)
    assert episode.prototypes[:, 0].tolist() == [2000, 1600]
    assert network(support[:1], episode).tolist() == [[0, -8 * 400**2]]


def test_labels_of_a_sampler_are_classes():
    with pytest.raises(ValueError, match=r"int64 of shape \(3, 3\); expected the class of"):
        EpisodeSampler(torch.eye(3, dtype=torch.long).tolist(), ways=2)
