"""Bounds against slow twins, closed forms and known limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from captum_mi.bounds import (
    bernoulli_kl,
    categorical_kl,
    donsker_varadhan,
    gaussian_kl,
    info_nce,
    log_mean_exp,
    pointwise_info_nce,
)


def slow_info_nce_local(scores):
    n, k, _ = scores.shape
    terms = []
    for i in range(n):
        for j in range(k):
            negatives = [scores[m, c, i] for m in range(n) if m != i for c in range(k)]
            total = sum(math.exp(s) for s in [scores[i, j, i], *negatives])
            terms.append(math.log((n - 1) * k + 1) + scores[i, j, i] - math.log(total))
    return sum(terms) / len(terms)


def slow_info_nce_global(scores):
    n, k, _ = scores.shape
    terms = [
        math.log(n) + scores[i, j, i] - math.log(sum(math.exp(s) for s in scores[i, j]))
        for i in range(n)
        for j in range(k)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    ("negatives", "slow"), [("local", slow_info_nce_local), ("global", slow_info_nce_global)]
)
def test_info_nce_equals_its_slow_twin(negatives, slow):
    scores = torch.randn(4, 3, 4, dtype=torch.float64)
    assert info_nce(scores, negatives).item() == pytest.approx(float(slow(scores)), abs=1e-12)


def test_info_nce_leaves_other_locals_of_the_same_example_out():
    scores = torch.randn(4, 3, 4)
    raised = scores.clone()
    raised[0, 1, 0] += 1000  # a positive of example 0: it must not swamp its siblings
    gain = info_nce(raised) - info_nce(scores)
    assert 0 < gain < math.log(10)


@pytest.mark.parametrize("negatives", ["local", "global"])
def test_info_nce_ceiling_and_zero(negatives):
    n, k = 6, 2
    perfect = torch.eye(n)[:, None, :].expand(n, k, n) * 1e4
    ceiling = math.log((n - 1) * k + 1 if negatives == "local" else n)
    assert info_nce(perfect, negatives).item() == pytest.approx(ceiling, rel=1e-5)
    assert info_nce(torch.zeros(n, k, n), negatives).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (4, 3, 5), (1, 3, 1)])
def test_info_nce_rejects_other_shapes(shape):
    with pytest.raises(ValueError, match=r"scores must be \(N, K, N\) with N >= 2"):
        info_nce(torch.zeros(shape))


def test_pointwise_info_nce_is_bounded_and_finite_at_extreme_scores():
    positive = torch.tensor([-1e4, 0.0, 1e4])
    value = pointwise_info_nce(positive, torch.zeros(3), 99)
    assert torch.isfinite(value).all()
    assert (value <= math.log(100) + 1e-5).all()


def test_donsker_varadhan_ignores_a_constant():
    scores = torch.randn(50, 50, dtype=torch.float64)
    first = donsker_varadhan(scores.diagonal(), log_mean_exp(scores))
    second = donsker_varadhan(scores.diagonal() + 7, log_mean_exp(scores + 7))
    torch.testing.assert_close(first, second)


def test_donsker_varadhan_with_the_exact_critic_gives_the_information():
    rho, n = 0.9, 4000
    x = torch.randn(n, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dtype=torch.float64)
    a = rho / (1 - rho**2)

    def critic(u, v):
        return a * u * v - 0.5 * rho * a * (u**2 + v**2)

    bound = donsker_varadhan(critic(x, y), log_mean_exp(critic(x[:, None], y[None, :])))
    assert bound.item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.03)


def test_kl_equal_those_of_torch_distributions():
    logits, marginal = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(
        categorical_kl(logits.log_softmax(-1), marginal.log_softmax(-1)),
        kl_divergence(Categorical(logits=logits), Categorical(logits=marginal)),
    )
    torch.testing.assert_close(
        bernoulli_kl(logits, marginal),
        kl_divergence(Independent(Bernoulli(logits=logits), 1),
                      Independent(Bernoulli(logits=marginal.expand(7, 5)), 1)),
    )
    mean, log_var = torch.randn(2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(
        gaussian_kl(mean, log_var),
        kl_divergence(Independent(Normal(mean, (0.5 * log_var).exp()), 1),
                      Independent(Normal(torch.zeros(5).double(), torch.ones(5).double()), 1)),
    )


def test_kl_stay_finite_at_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(categorical_kl(logits.log_softmax(-1), torch.full((3,), -1.0986))).all()
    assert torch.isfinite(bernoulli_kl(logits, torch.zeros(3))).all()
