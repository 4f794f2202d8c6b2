"""What a fit says about features whose information is known: a channel with Gaussian noise."""

from __future__ import annotations

import pytest
import torch
from noisy_channel import Truth, fitted, mixture
from torch import nn

from captum_mi import InfoBottleneckAttribution


@pytest.fixture(scope="module", params=[0.6, 0.8])
def channel(request):
    return fitted(request.param, 2, steps=200, seed=0, width=64)


def test_information_is_that_of_the_channel(channel):
    found = channel.information([mixture(8192, 2, 9)], progress=False)["0"]
    clean, noised = Truth(0.0), Truth(float(channel.alpha))
    assert found["general"].mean == pytest.approx(clean.about_the_class(), abs=0.06)
    assert found["sufficient"].mean == pytest.approx(noised.about_the_class(), abs=0.02)
    assert found["sufficient"].mean < found["capacity"].mean


def test_maps_of_the_heads_are_of_what_passes_too(channel):
    """The expectation over classes is so under q, and so is evidence under the model's p."""
    x = mixture(8192, 2, 9)
    truth = Truth(float(channel.alpha)).about_the_class()
    assert float(channel.attribute(x).mean()) == pytest.approx(truth, abs=0.02)
    p = channel.model(x).softmax(1).detach()
    evidence = (channel.evidence(x) * p).sum(1).mean()
    assert float(evidence) == pytest.approx(truth, abs=0.02)


def test_critics_find_what_passes_of_the_output(channel):
    found = channel.information([mixture(4096, 2, 9)], estimator="infomax", progress=False)["0"]
    truth = Truth(float(channel.alpha)).about_the_output()
    assert found["sufficient"].mean == pytest.approx(truth, abs=0.06)
    assert found["general"].mean > 5 * truth


def test_maps_of_the_critics_are_of_what_passes_too(channel):
    found = channel.attribute(mixture(4096, 2, 9), estimator="infomax").mean()
    truth = Truth(float(channel.alpha)).about_the_output()
    assert float(found) == pytest.approx(truth, abs=0.06 if truth > 0.1 else 0.02)


class LeftHalf(nn.Module):
    """The decision of the left half of a signal; the right half has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def forward(self, x):
        means = self.body(x)[:, :, :4].mean(2)
        return 8 * torch.stack([means[:, 0], -means[:, 0]], 1)


def test_heads_are_not_as_sure_of_noise_as_of_features():
    """Where the bottleneck finds that nothing is needed, next to nothing is told."""
    sides = torch.randn(1024, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = 0.5 * torch.randn(1024, 2, 8, generator=torch.Generator().manual_seed(1))
    which = torch.tensor([1.0, -1.0]).repeat_interleave(4).expand(1024, 1, 8)
    x = torch.cat([sides.repeat_interleave(4, 2) + noise, which], 1)
    attr = InfoBottleneckAttribution(LeftHalf(), "body", head_hidden=(32,))
    attr.fit(list(x.split(64)), steps=200, lr=3e-3, beta1=0, progress=False)
    expected = attr.attribute(x).sum(1).mean(0)
    assert expected[:4].mean() > 0.1
    assert expected[4:].mean() < 0.1 * expected[:4].mean()
