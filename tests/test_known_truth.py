"""What a fit says about features whose information is known: a channel with Gaussian noise."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from captum_mi import LayerInfoBottleneckAttribution

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
SHARES = torch.tensor([0.6, 0.3, 0.1])


def mixture(n, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.multinomial(SHARES, n, True, generator=generator)
    return CENTRES[label] + torch.randn(n, 2, generator=generator)


@pytest.fixture(scope="module", params=[0.6, 0.8])
def fitted(request):
    """A model that is the mixture's true posterior, noised at its input."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        model[1].weight.copy_(CENTRES)
        model[1].bias.copy_(SHARES.log() - CENTRES.square().sum(1) / 2)
    attr = LayerInfoBottleneckAttribution(
        model, layer="0", alpha=request.param, head_hidden=(64,), critic_hidden=(64,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attr.fit(list(mixture(8192, 0).split(256)), steps=400, lr=3e-3, progress=False)
    return attr


def log_densities(x, alpha):
    """Of each component, of standardised features that the noise has passed."""
    data = mixture(100_000, 1)
    mean, deviation = data.mean(0), data.std(0)
    kept = (1 - alpha) / deviation
    centres, variances = kept * (CENTRES - mean), kept**2 + alpha**2
    distance = ((x[:, None] - centres).square() / variances).sum(-1)
    return -0.5 * (distance + (2 * math.pi * variances).log().sum())


def channel(alpha):
    data = mixture(100_000, 1)
    z = (data - data.mean(0)) / data.std(0)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    return (1 - alpha) * z + alpha * noise


def information_about_the_class(alpha):
    joint = log_densities(channel(alpha), alpha) + SHARES.log()
    posterior = joint.log_softmax(1)
    return float((posterior.exp() * (posterior - SHARES.log())).sum(1).mean())


def information_about_the_features(alpha):
    entropy = -torch.logsumexp(
        log_densities(channel(alpha), alpha) + SHARES.log(), 1).mean()
    return float(entropy) - math.log(2 * math.pi * math.e * alpha**2)


def test_information_is_that_of_the_channel(fitted):
    alpha = float(fitted.alpha)
    found = fitted.information([mixture(8192, 3)], progress=False)["0"]
    assert found["general"].mean == pytest.approx(information_about_the_class(0.0), abs=0.06)
    assert found["sufficient"].mean == pytest.approx(information_about_the_class(alpha), abs=0.02)
    assert found["sufficient"].mean < found["capacity"].mean


def test_the_critic_knows_how_much_of_the_features_passes(fitted):
    alpha = float(fitted.alpha)
    found = fitted.information([mixture(8192, 3)], estimator="infomax", progress=False)["0"]
    # y tells the features, so x' tells about it what it tells about them.
    truth = information_about_the_features(alpha)
    assert found["sufficient"].mean == pytest.approx(truth, abs=0.06)
    assert found["general"].mean > 5 * truth
