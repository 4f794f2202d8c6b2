"""Weights keep signs and totals, and follow what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_mi.grid import Place
from captum_mi.maps.halves import pattern
from captum_mi.maps.weighting import Measured, weighted


def measured(
    shares: Tensor, losses: Tensor | None = None, halves: Tensor | None = None
) -> Measured:
    """Of shares and nothing else, unless it is given."""
    nothing = torch.zeros(len(shares), *[1] * (shares.dim() - 1))  # of one block
    return Measured(
        shares, nothing if losses is None else losses, shares[:, :0] if halves is None else halves)


def test_a_map_by_hand():
    maps = torch.tensor([[[2.0, 1.0, -1.0, 0.0]], [[-1.0, -2.0, -3.0, -4.0]]])
    posterior = torch.tensor([[[0.1, 0.2, 0.6, 0.1]]]).expand(2, 1, 4)
    cubes = 0.1**3 + 0.2**3 + 0.6**3 + 0.1**3
    weight = [0.95 * p**3 / cubes + 0.05 / 4 for p in (0.1, 0.2)]
    parts = [2 * weight[0], 1 * weight[1]]
    moved = [3 * part / sum(parts) for part in parts]
    expected = torch.tensor([[[*moved, -1.0, 0.0]], [[-1.0, -2.0, -3.0, -4.0]]])
    torch.testing.assert_close(weighted(maps, posterior), expected)
    torch.testing.assert_close(weighted(maps, 3 * posterior), expected)
    nowhere = torch.zeros(2, 1, 4)
    torch.testing.assert_close(weighted(maps, nowhere), maps)


def test_evidence_goes_where_the_shares_are_and_its_total_stays():
    maps = torch.randn(5, 1, 4, 4)
    shares = torch.zeros(5, 1, 4, 4)
    shares[:, :, 1, 2], shares[:, :, 3, 0] = 30.0, -20.0
    moved = weighted(maps, torch.ones(5, 1, 4, 4), measured(shares))
    assert (moved.flatten(1).argmax(1) == 6).all()
    change = moved - maps.clamp_max(0)  # evidence against the class stays
    torch.testing.assert_close(change.abs().sum((1, 2, 3)), maps.clamp_min(0).sum((1, 2, 3)))
    assert (change[:, :, 3, 0] < 0).all()
    assert (change >= 0).flatten(1).sum(1).eq(15).all()


def test_shares_of_a_hundredth_of_a_nat_change_next_to_nothing():
    maps, posterior = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    shares = torch.randn(5, 1, 4, 4)
    shares *= 0.01 / shares.abs().sum((2, 3), keepdim=True)
    change = weighted(maps, posterior, measured(shares)) - weighted(maps, posterior)
    assert change.abs().max() < 0.02 * maps.abs().sum((2, 3)).max()
    nothing = measured(0 * shares)
    torch.testing.assert_close(weighted(maps, posterior, nothing), weighted(maps, posterior))


def test_shares_on_a_coarser_grid_weigh_the_same():
    maps, posterior = torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    coarse = torch.rand(2, 1, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(*(
        weighted(maps, posterior, measured(shares)) for shares in (fine, coarse)))


def test_no_evidence_stays_none():
    nothing = torch.zeros(2, 1, 6)
    assert torch.equal(weighted(nothing, torch.rand(2, 1, 6)), nothing)
    shares = measured(torch.rand(2, 1, 6))
    assert torch.equal(weighted(nothing, torch.rand(2, 1, 6), shares), nothing)


def test_a_class_without_evidence_shows_what_it_loses():
    """What the model says for want of others: evidence is nowhere, but two blocks are needed."""
    nothing, uniform = torch.full((2, 1, 3), -0.1), torch.ones(2, 1, 3)
    losses = torch.tensor([[[0.0, 2.0, 1.0]], [[-1.0, 0.0, -3.0]]])
    moved = weighted(nothing, uniform, measured(0 * uniform, losses)) - nothing
    torch.testing.assert_close(moved[0], torch.tensor([[0.0, 4 / 3, 2 / 3]]))
    assert torch.equal(moved[1], 0 * nothing[1])


def test_blocks_that_harm_rank_last():
    """Evidence, posterior and shares are even: the losses alone tell blocks apart."""
    even = torch.ones(1, 1, 4, 4)
    losses = torch.tensor([[[[6.0, 0.0], [0.0, -6.0]]]])
    result = weighted(even, even, measured(even, losses))[0, 0]
    assert result[0, 0] > 1.5 > result[0, 3] > 0.5 > result[3, 3]
    assert result.abs().sum().item() == pytest.approx(16, rel=1e-5)
    nowhere = torch.zeros(1, 1, 4, 4)
    nowhere[..., 0, 0] = 1
    assert weighted(even, nowhere, measured(even, losses))[0, 0, 3, 3] < 0


@pytest.mark.parametrize("losses", [torch.zeros(1, 1, 2, 2), torch.full((1, 1, 1, 1), 5.0)])
def test_blocks_that_tell_nothing_change_nothing(losses):
    evidence, posterior, shares = torch.rand(3, 1, 1, 4, 4)
    torch.testing.assert_close(
        weighted(evidence, posterior, measured(shares, losses)),
        weighted(evidence, posterior, measured(shares)))


def test_blocks_are_asked_where_positions_are():
    even = torch.ones(1, 1, 4)
    losses = measured(0 * even, torch.tensor([[[1.0, 0.0]]]))
    at, moved = (weighted(even, even, losses, places)[0, 0] for places in ((), [Place(-0.5)]))
    assert (moved / moved[0])[2] > (at / at[0])[2]  # nearer to the block that matters


def test_halves_tell_apart_what_else_is_even():
    even = torch.ones(1, 1, 4, 4)
    halves = pattern((1, 0), (4, 4))[None, None].expand(1, 8, 4, 4)
    result = weighted(even, even, measured(even, halves=halves))[0, 0]
    assert result[:2].min() > 1 > result[2:].max()
    assert result.abs().sum().item() == pytest.approx(16, rel=1e-5)
    fewer = weighted(even, even, measured(even, halves=halves[:, :1]))[0, 0]
    assert result[0, 0] > fewer[0, 0] > 1


@pytest.mark.parametrize("halves", [torch.zeros(1, 0, 4, 4), torch.zeros(1, 3, 4, 4)])
def test_halves_that_tell_nothing_change_nothing(halves):
    evidence, posterior, shares, losses = torch.rand(4, 1, 1, 4, 4)
    torch.testing.assert_close(
        weighted(evidence, posterior, measured(shares, losses, halves)),
        weighted(evidence, posterior, measured(shares, losses)))
