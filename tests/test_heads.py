"""Heads, and what they say of noised features in the mean over the noise."""

import pytest
import torch

from captum_mi import LayerInfoBottleneckAttribution
from captum_mi.bottleneck import inject_noise
from captum_mi.heads import Head
from captum_mi.model.hooks import capture_only


def head_of(hidden):
    torch.manual_seed(0)
    head = Head(4, hidden, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.requires_grad_(False)


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_without_noise_the_expectation_is_the_head(hidden):
    head, x = head_of(hidden), torch.randn(5, 7, 4)
    torch.testing.assert_close(head.expected(x, torch.zeros(5, 7, 1)), head(x))


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_the_expectation_is_the_mean_of_many_draws(hidden):
    head, x, std = head_of(hidden), torch.randn(3, 2, 4), torch.rand(3, 2, 1) * 2
    noise = torch.randn(50_000, 3, 2, 4)
    draws = torch.cat([head(x + std * noise), head(x - std * noise)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((head.expected(x, std) - draws.mean(0)).abs() < 4 * error).all()


@torch.no_grad()
def test_evidence_of_noised_features_is_that_of_many_draws(net, images, quick_fit):
    attr = quick_fit(
        LayerInfoBottleneckAttribution(net, "stage1", alpha=0.5, head_hidden=(8,)), [images])
    networks, images = attr.networks, images[:4]
    for parameter in networks.noised_heads.parameters():  # of little training they tell little
        parameter.add_(0.3 * torch.randn_like(parameter))
    site, = networks.sites
    z = networks.standardise(capture_only(
        net, list({one.layer for one in networks.all_sites}), lambda: net(images)))
    logit = networks.alpha_logits(z)[site]
    parameters = torch.stack([
        networks.head(site, inject_noise(z[site], logit, torch.randn_like(z[site])), "noised")
        for _ in range(4096)
    ])
    expected = networks.output.evidence(parameters.mean(0)).transpose(1, 2).flatten(2)
    found = attr.evidence(images).flatten(2)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.abs().max()), rtol=0)
