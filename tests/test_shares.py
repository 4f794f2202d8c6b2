"""Shares in a decision: known truth, and laws of how they are dealt out."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.shares import agreement, apportion, clues, disagreement


def test_clues_are_signed_logarithms_of_nats_and_densities():
    evidence, posterior = torch.randn(2, 1, 2, 2), torch.rand(2, 1, 4, 4)
    posterior /= posterior.sum((2, 3), keepdim=True)
    fine_evidence = torch.randn(2, 1, 4, 4)
    coarse, fine, density = clues([evidence, fine_evidence], posterior.double(), (4, 4))
    assert coarse.shape == (2, 1, 4, 4)
    torch.testing.assert_close(fine, fine_evidence.sign() * (1 + fine_evidence.abs()).log())
    torch.testing.assert_close(density, (1 + 16 * posterior).log())


def test_disagreement_by_a_slow_twin():
    inferred, measured = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 10.0]]])
    errors = [2.0, 20.0]  # nats per position, times two positions
    expected = (0.5 * errors[0] ** 2 + 5 * (errors[1] - 2.5)) / 2
    torch.testing.assert_close(disagreement(inferred, measured), torch.tensor([expected]))


def test_agreement_is_the_correlation():
    a, b = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b)]
    np.testing.assert_allclose(agreement(a, b), expected, rtol=1e-4)
    assert agreement(torch.ones(1, 1, 4), torch.rand(1, 1, 4)) == 0


def test_evidence_goes_where_the_shares_are_and_both_totals_stay():
    maps = torch.randn(5, 1, 4, 4)
    shares = torch.zeros(5, 1, 4, 4)
    shares[:, :, 1, 2], shares[:, :, 3, 0] = 30.0, -20.0
    moved = apportion(maps, shares, torch.ones(5, 1, 4, 4))
    assert (moved.flatten(1).argmax(1) == 6).all()
    assert (moved.flatten(1).argmin(1) == 12).all()
    torch.testing.assert_close(moved.sum((1, 2, 3)), maps.sum((1, 2, 3)))
    posterior = torch.rand(5, 1, 4, 4)
    thrice = apportion(maps, shares, 3 * posterior)
    torch.testing.assert_close(thrice, apportion(maps, shares, posterior))


def test_shares_of_a_hundredth_of_a_nat_change_next_to_nothing():
    maps, posterior = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    shares = torch.randn(5, 1, 4, 4)
    shares *= 0.01 / shares.abs().sum((2, 3), keepdim=True)
    moved = apportion(maps, shares, posterior)
    without_any = apportion(maps, torch.zeros_like(shares), posterior)
    assert (moved - without_any).abs().max() < 0.02 * maps.abs().sum((2, 3)).max()


def test_shares_on_a_coarser_grid_weigh_the_same():
    maps, posterior = torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    coarse = torch.rand(2, 1, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(apportion(maps, fine, posterior),
                               apportion(maps, coarse, posterior))


def test_without_shares_the_posterior_alone_decides():
    maps, posterior = torch.rand(2, 1, 6), torch.rand(2, 1, 6)
    moved = apportion(maps, torch.zeros(2, 1, 6), posterior)
    product = maps * (0.8 * posterior / posterior.sum(2, keepdim=True) + 0.2 / 6)
    torch.testing.assert_close(moved, product * (maps.sum(2) / product.sum(2))[..., None])
    nothing = apportion(torch.zeros(2, 1, 6), torch.rand(2, 1, 6), posterior)
    assert torch.equal(nothing, torch.zeros(2, 1, 6))
    nowhere = apportion(maps, torch.zeros(2, 1, 6), torch.zeros(2, 1, 6))
    assert torch.equal(nowhere, maps)


class Sums(nn.Module):
    """Adds up what each position says for each class: its shares are known."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(4, 4, 1, bias=False)
        nn.init.dirac_(self.body.weight)

    def forward(self, x):
        return self.body(x).sum((2, 3))


def scenes(n, seed):
    """Images (n, 4, 8, 8) with one patch for a class and a weaker one for another, and masks."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn(n, 4, 8, 8, generator=generator)
    label = torch.randint(4, (n,), generator=generator)
    other = (label + torch.randint(1, 4, (n,), generator=generator)) % 4
    cells = torch.rand(n, 16, generator=generator).argsort(1)[:, :2]
    masks = torch.zeros(2, n, 8, 8, dtype=torch.bool)
    for i in range(n):
        for which, (c, size) in enumerate(((label[i], 1.0), (other[i], 0.6))):
            top, left = 2 * (cells[i, which] // 4), 2 * (cells[i, which] % 4)
            masks[which, i, top : top + 2, left : left + 2] = True
            x[i, c][masks[which, i]] += size
    return x, label, masks


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, label, _ = scenes(512, 0)
    attr = InfoBottleneckAttribution(Sums(), "body", head_hidden=(32,))
    attr.fit([(a, b) for a, b in zip(x.split(64), label.split(64))], steps=150, lr=5e-3,
             beta1=0, progress=False)
    return attr


def test_what_speaks_for_the_class_is_told_from_what_speaks_against_it(trained):
    x, label, (own, other) = scenes(200, 1)
    maps = trained.attribute(x, label).sum(1)
    rest = maps[~(own | other)].mean()
    assert maps[own].mean() > 10 * rest.abs()
    assert maps[other].mean() < rest
    hottest = own.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))
    coldest = other.flatten(1).gather(1, maps.flatten(1).argmin(1, keepdim=True))
    assert hottest.float().mean() > 0.95
    assert coldest.float().mean() > 0.8


def test_inferred_shares_come_to_agree_with_measured_ones(trained):
    shares = trained.history.shares
    assert sum(shares[-30:]) / 30 > 0.7
    assert sum(shares[-30:]) > 1.3 * sum(shares[:30])


def test_inferred_shares_are_those_that_many_passes_measure(trained):
    x, label, _ = scenes(64, 3)
    measured = shares(trained, x, label, 200)
    assert agreement(shares(trained, x, label, 0), measured).mean() > 0.97


def test_refinement_brings_shares_of_a_short_fit_nearer_to_measured_ones(quick_fit):
    x, label, _ = scenes(64, 3)
    attr = quick_fit(InfoBottleneckAttribution(Sums(), "body"), [x], steps=3)
    inferred, refined, measured = (shares(attr, x, label, steps) for steps in (0, 8, 200))
    assert agreement(refined, measured).mean() > agreement(inferred, measured).mean() + 0.1
    alone = shares(attr, x[:1], label[:1], 8)
    torch.testing.assert_close(alone, refined[:1], rtol=1e-4, atol=1e-5)


def shares(attr, x, label, steps):
    """Shares that the default map is weighted by."""
    found = {}

    def keep(maps, shares, posterior):
        found["shares"] = shares
        return apportion(maps, shares, posterior)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_mi.reading.apportion", keep)
        attr.attribute(x, label, refine_steps=steps)
    return found["shares"]


def test_shares_are_saved_with_the_fit(trained, tmp_path):
    x, label, _ = scenes(4, 2)
    trained.save(tmp_path / "fit.safetensors")
    loaded = InfoBottleneckAttribution.load(tmp_path / "fit.safetensors", trained.model)
    assert torch.equal(loaded.attribute(x, label), trained.attribute(x, label))


def test_shares_are_the_default_for_a_class(fitted, images):
    default = fitted.attribute(images, 1)
    assert torch.equal(default, fitted.attribute(images, 1, weighting="shares"))
    assert not torch.equal(default, fitted.attribute(images, 1, weighting="posterior"))


@pytest.mark.parametrize("information", ["sufficient", "general"])
def test_shares_keep_the_totals_of_a_layer(net, images, quick_fit, information):
    attr = quick_fit(LayerInfoBottleneckAttribution(net, "stage2"), [images], steps=30)
    plain, moved = (
        attr.attribute(images, 2, information=information, weighting=weighting)
        for weighting in ("none", "shares")
    )
    torch.testing.assert_close(moved.sum((1, 2, 3)), plain.sum((1, 2, 3)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.body = nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, words):
        return self.fc(self.body(self.embed(words).transpose(1, 2)).relu().mean(2))


def test_words_have_shares_too(quick_fit):
    words = torch.randint(10, (16, 6))
    attr = InfoBottleneckAttribution(Words(), "body", channel_axis="first")
    quick_fit(attr, [words], steps=20)
    default = attr.attribute(words, 0)
    assert torch.equal(default, attr.attribute(words, 0, weighting="shares"))
    assert not torch.equal(default, attr.attribute(words, 0, weighting="posterior"))
