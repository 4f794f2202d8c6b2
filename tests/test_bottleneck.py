"""The bottleneck at its limits, and its capacity against the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from captum_mi.bottleneck import capacity, denoised, inject_noise, keep, logit_of


def test_capacity_is_the_kl_of_its_definition():
    z = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    alpha = torch.rand(5, 1, 4, 4, dtype=torch.float64) * 0.98 + 0.01
    expected = kl_divergence(
        Normal((1 - alpha) * z, alpha.expand_as(z)), Normal(torch.zeros_like(z), 1.0)
    )
    torch.testing.assert_close(capacity(z, torch.logit(alpha)), expected)


@pytest.mark.parametrize("logit", [-1e4, -88.0, -10.0, 0.0, 10.0, 17.0, 88.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_capacity_and_its_gradient_are_finite_at_any_logit(logit, dtype):
    z = torch.randn(4, 3, dtype=dtype)
    logits = torch.full((4, 1), logit, dtype=dtype, requires_grad=True)
    value = capacity(z, logits)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert torch.isfinite(logits.grad).all()


def test_capacity_in_float32_keeps_its_digits_near_pure_noise():
    z, logit = torch.tensor([0.5]), torch.tensor([6.0])
    exact = capacity(z.double(), logit.double())
    assert capacity(z, logit).item() == pytest.approx(exact.item(), rel=0.02)


def test_capacity_bounds_the_information_that_passes():
    for alpha in (0.1, 0.3, 0.5, 0.7, 0.9):
        logit = torch.logit(torch.tensor(alpha, dtype=torch.float64))
        z = torch.randn(200_000, 1, dtype=torch.float64)
        passes = 0.5 * math.log(1 + ((1 - alpha) / alpha) ** 2)
        assert capacity(z, logit).mean().item() >= passes - 1e-3


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_what_is_expected_of_clean_features_is_their_regression_on_noised_ones(alpha):
    z, noise = torch.randn(2, 1_000_000, dtype=torch.float64)
    logit = logit_of(torch.tensor(alpha, dtype=torch.float64))
    noised = inject_noise(z, logit, noise)
    slope = (z * noised).mean() / noised.square().mean()
    torch.testing.assert_close(denoised(noised, logit), slope * noised, atol=0, rtol=0.01)


def test_nothing_is_expected_of_pure_noise_and_clean_features_are_themselves():
    z = torch.randn(3, 4)
    assert torch.equal(denoised(z, logit_of(torch.tensor(0.0))), z)
    assert denoised(z, logit_of(torch.tensor(1.0))).abs().max() < 1e-20


def test_alpha_0_leaves_features_untouched_and_alpha_1_leaves_only_noise():
    z, noise = torch.randn(2, 6, 3, 5, 5)
    untouched = inject_noise(z, logit_of(torch.tensor(0.0)), noise)
    assert torch.equal(untouched, z)
    drowned = inject_noise(z, logit_of(torch.tensor(1.0)), noise)
    assert torch.equal(drowned, noise)


def test_keep_is_one_minus_alpha_without_cancellation():
    logit = torch.tensor(30.0)
    assert keep(logit).item() == pytest.approx(math.exp(-30), rel=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_of_its_range_is_an_error(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        logit_of(torch.tensor(alpha))
