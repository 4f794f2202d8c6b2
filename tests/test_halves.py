"""Which half of the input a decision needs: orthogonal patterns, sums, what is shown twice."""

import pytest
import torch

from captum_mi.maps.ablation import block_losses
from captum_mi.maps.halves import half_contrasts, pattern, sequencies, walsh


@pytest.mark.parametrize("size", [2, 4, 16])
def test_walsh_functions_are_orthogonal_and_in_the_order_of_their_changes(size):
    table = torch.stack([walsh(s, size) for s in range(size)])
    torch.testing.assert_close(table @ table.T, size * torch.eye(size, dtype=torch.float64))
    assert table.diff(dim=1).ne(0).sum(1).tolist() == list(range(size))


@pytest.mark.parametrize("sizes", [(12, 12), (5,), (3, 4, 2), (1, 7), (1, 1)])
def test_patterns_differ_and_none_is_all_of_the_input(sizes):
    orders = sequencies(20, sizes)
    assert len(orders) == len(set(orders)) <= 20
    for one in orders:
        signs = pattern(one, sizes)
        assert signs.shape == sizes
        assert signs.unique().tolist() == [-1, 1]


@pytest.mark.parametrize("channels_last", [False, True])
def test_contrasts_of_a_sum_are_what_each_position_adds(channels_last):
    parts = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.stack([parts, parts], 3 if channels_last else 1) / 2

    def log_p(inputs):
        return inputs.sum((1, 2, 3)).log()

    axis = 1 if channels_last else 2
    found = half_contrasts(log_p, log_p(x), x, torch.zeros(()), 15, axis, (4, 4))
    assert found.shape == (3, 15, 4, 4)
    whole = parts.sum((1, 2), keepdim=True)
    torch.testing.assert_close(found.sum(1), 16 * parts / whole - 1)


def test_halves_find_a_class_that_is_shown_twice():
    """Either place suffices: no block is missed, but a half without both is."""
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0, 1] = x[0, 0, 2, 3] = 1

    def log_p(inputs):
        return inputs.flatten(1).amax(1).clamp_min(0.01).log()

    assert not block_losses(log_p, log_p(x), x, torch.zeros(()), 16, 2, 2).any()
    mean = half_contrasts(log_p, log_p(x), x, torch.zeros(()), 15, 2, (4, 4)).mean(1)[0]
    assert {*mean.flatten().topk(2).indices.tolist()} == {0, 5}


def test_a_class_that_only_a_half_shows_overflows_nothing():
    x = torch.zeros(2, 1, 4, 4)
    x[:, :, :, 2:] = 1

    def log_p(inputs):  # e^2000 times as likely without the right half
        return -2000 * inputs[..., 2:].mean((1, 2, 3))

    found = half_contrasts(log_p, log_p(x), x, torch.zeros(()), 3, 2, (4, 4))
    assert found.isfinite().all()
    mean = found.mean(1)
    assert (mean[..., :2] > 0).all()
    assert (mean[..., 2:] < 0).all()


def test_baselines_of_words_and_of_rows_take_the_place_of_a_half():
    words = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    baselines = torch.tensor([[0], [9]])
    seen = []

    def log_p(inputs):
        seen.append(inputs.tolist())
        return torch.zeros(len(inputs))

    half_contrasts(log_p, torch.zeros(2), words, baselines, 1, 1, (4,))
    assert seen == [[[1, 2, 0, 0], [5, 6, 9, 9]], [[0, 0, 3, 4], [9, 9, 7, 8]]]


def test_steps_beyond_nine_are_pairs_of_halves(fitted, images):
    nine, ten, eleven = (fitted.attribute(images, 1, refine_steps=n) for n in (9, 10, 11))
    assert torch.equal(nine, ten)
    assert not torch.allclose(ten, eleven, rtol=1e-3)
    alone = fitted.attribute(images[:1], 1, refine_steps=11)
    torch.testing.assert_close(
        alone, eleven[:1], rtol=1e-4, atol=1e-5 * float(eleven.abs().max()))


@pytest.mark.parametrize("grid", [6, 7, 12, 14])
def test_halves_of_a_mirrored_input_are_mirrored(grid):
    """Also on grids of no power of two, where a change of sign lies within a position."""
    torch.manual_seed(0)
    weight = torch.rand(8 * grid).double()
    weight = weight + weight.flip(0)  # a decision that is the same for mirrored inputs
    x = torch.randn(3, 8 * grid).double()

    def contrasts(x):
        def log_p(one):
            return (one.square() @ weight).log()

        return half_contrasts(log_p, log_p(x), x, torch.zeros_like(x), 6, 1, (grid,))

    torch.testing.assert_close(contrasts(x.flip(1)), contrasts(x).flip(2))
