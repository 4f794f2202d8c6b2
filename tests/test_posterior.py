"""The posterior over positions is Bayes' rule, and spreading by it keeps signs and totals."""

import torch

from captum_mi.posterior import capacity_prior, position_posterior, spread


def test_the_posterior_finds_the_position_that_shows_the_class():
    # A generator with a known truth: one of 3 positions, drawn from a prior, shows symbol t
    # where all others show noise; two layers see noisy symbols. Bayes' rule by counting.
    generator = torch.manual_seed(0)
    n, positions, symbols = 200_000, 3, 2
    prior = torch.tensor([0.5, 0.3, 0.2])
    where = torch.multinomial(prior, n, replacement=True, generator=generator)
    likely, unlikely = torch.tensor([0.2, 0.8]), torch.tensor([0.6, 0.4])  # p(symbol | t), p(s)
    shown = torch.arange(positions) == where[:, None]
    layers = [
        torch.where(
            shown,
            torch.multinomial(likely, n * positions, True, generator=generator).view(n, -1),
            torch.multinomial(unlikely, n * positions, True, generator=generator).view(n, -1),
        )
        for _ in range(2)
    ]
    ratio = (likely / unlikely).log()
    posterior = position_posterior(
        [ratio[one][:, None] for one in layers], prior.expand(n, 1, positions)
    )[:, 0]
    code = sum(symbols ** (positions * i) * (one * symbols ** torch.arange(positions)).sum(1)
               for i, one in enumerate(layers))
    for pattern in code.unique():
        among = code == pattern
        if among.sum() > 2000:
            counted = shown[among].double().mean(0)
            torch.testing.assert_close(posterior[among][0], counted, atol=0.04, rtol=0)


def test_layers_of_other_grids_are_resized_and_extremes_stay_finite():
    evidence = [torch.full((2, 1, 4, 4), 500.0), torch.full((2, 1, 2, 2), -500.0)]
    evidence[0][:, :, 1, 2] = 600
    posterior = position_posterior(evidence, torch.ones(2, 1, 4, 4))
    assert posterior.shape == (2, 1, 4, 4)
    torch.testing.assert_close(posterior.sum((1, 2, 3)), torch.ones(2).double())
    assert posterior[0, 0, 1, 2] == 1
    nothing_passes = position_posterior(evidence, torch.zeros(2, 1, 4, 4))
    assert torch.isfinite(nothing_passes).all()


def test_spreading_a_map_by_hand():
    maps = torch.tensor([[[2.0, 1.0, -1.0, 0.0]], [[-1.0, -2.0, -3.0, -4.0]]])
    posterior = torch.tensor([[[0.1, 0.2, 0.6, 0.1]]]).expand(2, 1, 4)
    expected = torch.tensor([[[1.5, 1.5, -1.0, 0.0]], [[-1.0, -2.0, -3.0, -4.0]]])
    torch.testing.assert_close(spread(maps, posterior), expected)
    nowhere = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]).expand(2, 1, 4)
    torch.testing.assert_close(spread(maps, nowhere), maps)


def test_the_prior_is_uniform_for_a_uniform_alpha_and_falls_with_it():
    logits = torch.linspace(-50, 50, 11).view(1, 1, 11)
    prior = capacity_prior(logits)
    assert (prior.diff() <= 0).all()
    assert prior[..., 0] > 49
    assert prior[..., -1] == 0
    assert capacity_prior(torch.zeros(1, 1, 3)).unique().numel() == 1
