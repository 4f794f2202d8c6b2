"""Shares in a decision: known truth, laws of how they are dealt out, and sets of positions."""

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.removal import channels_first, random_positions, without
from captum_mi.shares import apportion, share_out


def test_shares_by_a_slow_twin_sum_to_the_total():
    n, classes, k = 2, 3, 4
    scores, total = torch.randn(n, 3, k).double(), torch.randn(n, classes).double()
    evidence = [torch.randn(n, classes, k).double() for _ in range(2)]
    shares = share_out(scores, total, evidence)
    for i in range(n):
        weight = scores[i, 0].exp() / scores[i, 0].exp().sum()
        for c in range(classes):
            local = sum((1 + scores[i, 1 + m].exp()).log() / k * evidence[m][i, c]
                        for m in range(2))
            expected = weight * total[i, c] + local - local.mean()
            torch.testing.assert_close(shares[i, c], expected)
    torch.testing.assert_close(shares.sum(2), total)


def test_evidence_of_coarser_layers_is_resized():
    shares = share_out(torch.zeros(1, 2, 4, 4), torch.ones(1, 1), [torch.randn(1, 1, 2, 2)])
    assert shares.shape == (1, 1, 4, 4)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))


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
    product = maps * posterior
    torch.testing.assert_close(moved, product * (maps.sum(2) / product.sum(2))[..., None])
    nothing = apportion(torch.zeros(2, 1, 6), torch.rand(2, 1, 6), posterior)
    assert torch.equal(nothing, torch.zeros(2, 1, 6))
    nowhere = apportion(maps, torch.zeros(2, 1, 6), torch.zeros(2, 1, 6))
    assert torch.equal(nowhere, maps)


@pytest.mark.parametrize("grid", [(12,), (12, 12), (7, 5), (2, 2, 2), (1, 1)])
def test_every_position_is_removed_as_often(grid):
    sets = torch.cat([random_positions(200, grid, torch.device("cpu")) for _ in range(40)]).float()
    assert sets.shape == (8000, 1, *grid)
    rate = sets.mean((0, 1))
    # The mean of a squared uniform number, rounded up to whole positions.
    assert rate.min() > rate.max() - 0.06
    positions = rate.numel()
    sizes = sets.flatten(1).sum(1)
    expected = torch.ceil(torch.linspace(0, 1, 10001)[1:].square() * positions).mean()
    assert sizes.mean() == pytest.approx(float(expected), rel=0.05)


def test_random_sets_are_scattered_or_lumps():
    def touching(sets):  # share of neighbours that are alike, against chance
        share = sets.float().mean((1, 2, 3))
        same = (sets[..., 1:] == sets[..., :-1]).float().mean((1, 2, 3))
        return float((same - (share**2 + (1 - share) ** 2)).mean())

    lumped = [touching(random_positions(500, (12, 12), torch.device("cpu"))) for _ in range(30)]
    assert min(lumped) < 0.01
    assert max(lumped) > 0.1


def test_inputs_without_some_positions():
    reference = torch.tensor([10.0, 20.0])
    removed = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    removed[..., 0, 1] = True
    x = torch.rand(1, 2, 4, 4)
    kept = x.clone()
    less = without(x, removed, reference)
    assert torch.equal(x, kept)
    assert (less[0, 0, :2, 2:] == 10).all()
    assert (less[0, 1, :2, 2:] == 20).all()
    less[:, :, :2, 2:] = x[:, :, :2, 2:]
    assert torch.equal(less, x)
    last = x.movedim(1, -1)
    assert channels_first(last, (4, 4)).shape == x.shape
    on_last = without(last, removed.repeat_interleave(2, 2).repeat_interleave(2, 3), reference)
    assert torch.equal(on_last.movedim(-1, 1), without(x, removed, reference))
    flat = without(torch.rand(3, 4), torch.ones(3, 1, 2, dtype=torch.bool), reference[:1])
    assert (flat == 10).all()


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


def test_the_shares_learn_what_removal_does(trained):
    removal = trained.history.removal
    assert sum(removal[-30:]) < 0.5 * sum(removal[:30])


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


def test_words_cannot_be_removed_and_get_the_posterior(quick_fit):
    words = torch.randint(10, (16, 6))
    attr = quick_fit(InfoBottleneckAttribution(Words(), "body", channel_axis="first"), [words])
    assert not attr.history.removal
    default = attr.attribute(words, 0)
    assert torch.equal(default, attr.attribute(words, 0, weighting="posterior"))
    with pytest.raises(ValueError, match="needs an input of floating-point values"):
        attr.attribute(words, 0, weighting="shares")
