"""The posterior over positions is Bayes' rule, and spreading by it keeps signs and totals."""

import itertools

import pytest
import torch

from captum_mi.bottleneck import capacity
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
    squares = 0.1**2 + 0.2**2 + 0.6**2 + 0.1**2
    weight = [0.95 * p**2 / squares + 0.05 / 4 for p in (0.1, 0.2)]
    parts = [2 * weight[0], 1 * weight[1]]
    moved = [3 * part / sum(parts) for part in parts]
    expected = torch.tensor([[[*moved, -1.0, 0.0]], [[-1.0, -2.0, -3.0, -4.0]]])
    torch.testing.assert_close(spread(maps, posterior), expected)
    torch.testing.assert_close(spread(maps, 3 * posterior), expected)
    nowhere = torch.zeros(2, 1, 4)
    torch.testing.assert_close(spread(maps, nowhere), maps)


def test_evidence_goes_where_the_shares_are_and_its_total_stays():
    maps = torch.randn(5, 1, 4, 4)
    shares = torch.zeros(5, 1, 4, 4)
    shares[:, :, 1, 2], shares[:, :, 3, 0] = 30.0, -20.0
    moved = spread(maps, torch.ones(5, 1, 4, 4), shares)
    assert (moved.flatten(1).argmax(1) == 6).all()
    change = moved - maps.clamp_max(0)  # evidence against the class stays
    torch.testing.assert_close(change.abs().sum((1, 2, 3)), maps.clamp_min(0).sum((1, 2, 3)))
    assert (change[:, :, 3, 0] < 0).all()
    assert (change >= 0).flatten(1).sum(1).eq(15).all()


def test_shares_of_a_hundredth_of_a_nat_change_next_to_nothing():
    maps, posterior = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    shares = torch.randn(5, 1, 4, 4)
    shares *= 0.01 / shares.abs().sum((2, 3), keepdim=True)
    change = spread(maps, posterior, shares) - spread(maps, posterior)
    assert change.abs().max() < 0.02 * maps.abs().sum((2, 3)).max()
    torch.testing.assert_close(spread(maps, posterior, 0 * shares), spread(maps, posterior))


def test_shares_on_a_coarser_grid_weigh_the_same():
    maps, posterior = torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    coarse = torch.rand(2, 1, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(spread(maps, posterior, fine), spread(maps, posterior, coarse))


def test_no_evidence_stays_none():
    nothing = torch.zeros(2, 1, 6)
    assert torch.equal(spread(nothing, torch.rand(2, 1, 6)), nothing)
    assert torch.equal(spread(nothing, torch.rand(2, 1, 6), torch.rand(2, 1, 6)), nothing)


def test_a_class_without_evidence_shows_what_it_loses():
    """What the model says for want of others: evidence is nowhere, but two blocks are needed."""
    nothing, uniform = torch.full((2, 1, 3), -0.1), torch.ones(2, 1, 3)
    losses = torch.tensor([[[0.0, 2.0, 1.0]], [[-1.0, 0.0, -3.0]]])
    moved = spread(nothing, uniform, 0 * uniform, losses) - nothing
    torch.testing.assert_close(moved[0], torch.tensor([[0.0, 4 / 3, 2 / 3]]))
    assert torch.equal(moved[1], 0 * nothing[1])


def test_the_prior_is_uniform_for_a_uniform_alpha_and_falls_with_it():
    logits = torch.linspace(-50, 50, 11).view(11, 1, 1, 1).expand(-1, -1, 3, 4)
    prior = capacity_prior(logits)
    assert (prior == prior[:, :, :1, :1]).all()
    assert (prior[:, 0, 0, 0].diff() <= 0).all()
    assert prior[0, 0, 0, 0] > 49
    assert prior[-1, 0, 0, 0] == 0
    assert capacity_prior(torch.zeros(2, 1)).shape == (2, 1)


@pytest.mark.parametrize("grid", [(7,), (5, 7), (3, 5, 7)])
def test_the_prior_is_the_mean_of_a_position_and_those_beside_it(grid):
    logits = torch.randn(2, 1, *grid)
    passed = capacity(torch.ones(()), logits)
    prior = capacity_prior(logits)
    for place in itertools.product(*map(range, grid)):
        near = passed[(..., *(slice(max(i - 1, 0), i + 2) for i in place))]
        torch.testing.assert_close(prior[(..., *place)], near.flatten(1).mean(1, keepdim=True))


def test_what_passes_beside_the_class_leads_to_the_class():
    """Alpha opens next to the position that the evidence is centred on, and nowhere else."""
    evidence = torch.zeros(1, 1, 9, 9)
    evidence[..., 3:6, 3:6] = 1.0
    evidence[..., 4, 4] = 1.2
    logits = torch.full((1, 1, 9, 9), 8.0)
    logits[..., 4, 5] = -2.0
    posterior = position_posterior([evidence, evidence], capacity_prior(logits))
    assert spread(evidence, posterior).argmax() == 4 * 9 + 4
