"""Heads, and what they say of noised features in the mean over the noise."""

import pytest
import torch

from captum_mi import LayerInfoBottleneckAttribution
from captum_mi.bottleneck import inject_noise
from captum_mi.heads import Head
from captum_mi.model.hooks import capture_only
from captum_mi.outputs import make_output


def head_of(hidden):
    torch.manual_seed(0)
    head = Head(4, hidden, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.requires_grad_(False)


def chosen(hidden):
    head = head_of(hidden)
    head.choose_noise(lambda changes: changes)
    return head


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_without_noise_a_pair_is_the_head_twice(hidden):
    head, x = chosen(hidden), torch.randn(5, 7, 4)
    for one in head.pair(x, torch.zeros(5, 7, 1)):
        torch.testing.assert_close(one, head(x))


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_the_mean_of_a_pair_is_that_of_many_draws(hidden):
    head, x, std = chosen(hidden), torch.randn(3, 2, 4), torch.rand(3, 2, 1) * 2
    noise = torch.randn(50_000, 3, 2, 4)
    draws = torch.cat([head(x + std * noise), head(x - std * noise)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((torch.stack(head.pair(x, std)).mean(0) - draws.mean(0)).abs() < 4 * error).all()


def test_the_prior_weighs_as_much_as_a_gaussians_density():
    head, half = head_of((16,)), torch.tensor(0.5)
    weights = torch.cat([head[0].weight.flatten(), head[2].weight.flatten()])
    density = torch.distributions.Normal(0, half).log_prob
    expected = (density(torch.zeros(())) - density(weights)).sum()
    torch.testing.assert_close(head.negative_log_prior(), expected)


@pytest.mark.parametrize(("channels", "size"), [(6, 3), (3, 6)])
def test_the_noise_is_one_deviation_along_every_axis_that_tells(channels, size):
    """So the squared changes of a linear head's parameters are in all what all noise makes."""
    head = Head(channels, (), size).requires_grad_(False)
    torch.nn.init.normal_(head[0].weight, generator=torch.Generator().manual_seed(0))
    head.choose_noise(lambda changes: changes)
    one, other = head.pair(torch.zeros(1, channels), torch.ones(1, 1))
    changes = (one - other).square().sum() / 4
    torch.testing.assert_close(changes, head[0].weight.square().sum())
    torch.testing.assert_close(head.noise.square().mean(), torch.tensor(1.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("channels", [8, 32])
def test_evidence_for_each_label_is_that_of_many_draws(channels):
    """Two labels are nearly the same, and one is told by nothing."""
    torch.manual_seed(0)
    weight = torch.randn(6, channels) * 3 / channels**0.5
    weight[1] = weight[0] + 0.2 * weight[1]
    weight[2] = 0
    head, output = Head(channels, (), 6).requires_grad_(False), make_output("bernoulli", (6,))
    head[0].weight.copy_(weight)
    head.choose_noise(output.metric, each=output.independent)
    x, std = torch.randn(64, channels), torch.full((64, 1), 0.8)
    every = output.evidence(head(x + std * torch.randn(4096, *x.shape))).mean(0)
    one, other = head.pair(x, std)
    off = ((output.evidence(one) + output.evidence(other)) / 2 - every).mean(0).abs()
    at_the_mean = (output.evidence(head(x)) - every).mean(0)
    told = [0, 1, 3, 4, 5]
    assert (at_the_mean[told] > 0.05).all()
    assert (off[told] < 0.15 * at_the_mean[told]).all()
    assert off[2] < 1e-6


@torch.no_grad()
def test_readings_of_noised_features_are_those_of_many_draws(net, images, quick_fit):
    attr = quick_fit(
        LayerInfoBottleneckAttribution(net, "stage1", alpha=0.5, head_hidden=(8,)), [images])
    networks, images = attr.networks, images[:4]
    for parameter in networks.noised_heads.parameters():  # of little training they tell little
        parameter.add_(0.3 * torch.randn_like(parameter))
    networks.choose_noise()
    site, = networks.sites
    z = networks.standardise(capture_only(
        net, list({one.layer for one in networks.all_sites}), lambda: net(images)))
    logit = networks.alpha_logits(z)[site]
    parameters = torch.stack([
        networks.noised_head(
            site, inject_noise(z[site], logit, torch.randn_like(z[site])), logit)
        for _ in range(4096)
    ])
    for found, every in (
        (attr.evidence(images).flatten(2).transpose(1, 2), networks.output.evidence(parameters)),
        (attr.attribute(images).flatten(1), networks.output.kl(parameters)),
    ):
        expected = every.mean(0)
        assert expected.abs().mean() > 0.1
        assert (found - expected).square().mean().sqrt() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
def test_the_metric_is_the_divergence_of_small_changes(kind):
    output = make_output(kind, (4,)).double()
    output.fit_marginal(2 * torch.randn(64, 4, dtype=torch.double))
    for changes in 1e-3 * torch.randn(5, output.head_size, 1, dtype=torch.double):
        divergence = output.metric(changes).square().sum() / 2
        torch.testing.assert_close(divergence, output.kl(changes[:, 0]), rtol=1e-2, atol=0)
