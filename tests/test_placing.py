"""Positions lie in the middle of what they see, and maps are drawn there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.grid import Lattice, Place, centres, resize
from captum_mi.maps.halves import half_contrasts
from captum_mi.maps.heatmap import joined, to_input


def places_of(model, x, layer=None):
    attr = InfoBottleneckAttribution(model.eval(), layer)
    attr.fit([x], 1, progress=False, bank_size=64)
    return {site: tuple(one.place for one in lattices)
            for site, lattices in attr.networks.lattices.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kernel", "stride", "pad", "size", "expected"), [
    (3, 4, 1, 32, -1.5 / 4),  # around the first pixel of each four
    (4, 4, 0, 32, 0.0),  # patches
    (3, 4, 0, 31, 0.0),  # inside of the cells, up to half a pixel
    (3, 1, 1, 16, 0.0),
    (3, 4, 1, 29, 0.0),  # the last position is centred on the last pixel
])
def test_strided_convolutions(kernel, stride, pad, size, expected):
    model = nn.Sequential(
        nn.Conv2d(3, 8, kernel, stride, pad), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(64, 3, size, size)
    model(x)
    (found,) = places_of(model, x, "1").values()
    assert [place.offset for place in found] == pytest.approx([expected] * 2, abs=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_residual_network_is_centred_on_the_first_pixel_of_each_stride():
    found = places_of(torchvision.models.resnet18(num_classes=5), torch.randn(24, 3, 64, 64))
    assert [site.layer for site in found] == ["layer2", "layer3", "layer4"]
    for place in next(iter(found.values())):
        assert place.offset == pytest.approx(-3.5 / 8, abs=0.06)
        assert place.scale == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kernel", "stride", "size", "n"), [
    (25, 1, 64, 40), (5, 2, 33, 15), (9, 4, 61, 14), (3, 1, 8, 6)])
def test_convolutions_without_padding_leave_out_the_edges(kernel, stride, size, n):
    model = nn.Sequential(nn.Conv1d(2, 8, kernel, stride), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * n, 3))
    ((found,),) = places_of(model, torch.randn(64, 2, size), "1").values()
    middles = kernel / 2 + stride * torch.arange(n)
    error = centres(n, found) * size - middles
    assert float(error.abs().max()) < 0.1 * kernel
    assert found.scale == pytest.approx(stride * n / size)


@pytest.mark.parametrize(("kernel", "stride", "pad", "size", "n", "others"), [
    (5, 1, 0, 24, 20, [(96, 92), (25, 21)]),  # without padding: 4 samples fewer at any size
    (3, 4, 1, 32, 8, [(31, 8), (36, 9), (65, 17)]),
    (4, 4, 0, 32, 8, [(33, 8), (64, 16)]),
])
def test_an_input_of_another_size_has_positions_where_they_look(
        kernel, stride, pad, size, n, others):
    first = (kernel - 1) / 2 - pad + 0.5  # the middle of what position 0 sees
    scale = stride * n / size
    lattice = Lattice(Place((first / size - 0.5) * n + (n - 1) / 2 * scale, scale), n, size)
    for new_size, new_n in [(size, n), *others]:
        found = centres(new_n, lattice.at(new_n, new_size)) * new_size
        torch.testing.assert_close(found, first + stride * torch.arange(new_n).double())


def test_a_model_that_resizes_its_inputs_has_positions_in_shares_of_them():
    place = Place(-0.4, 1.0)
    for size in (102, 160):
        assert Lattice(place, 12, 96).at(12, size) == place
    assert Lattice(Place(), 1, 32).at(1, 40) == Place()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                  nn.Linear(8, 3)),
    nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                  nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                  nn.Linear(8, 3)),
])
def test_maps_of_inputs_of_any_size_are_finite_and_keep_their_total(model):
    attr = InfoBottleneckAttribution(model.eval(), "1", head_layers=[], context_layers="1")
    attr.fit([torch.randn(4, 3, 64, 64)], 1, progress=False, bank_size=64)
    own = LayerInfoBottleneckAttribution(model, "1", head_layers=[], context_layers="1")
    own._fit = attr._fit
    for size in range(56, 90):
        x = torch.randn(1, 3, size, size)
        maps, coarse = (one.attribute(x, 0, weighting="none") for one in (attr, own))
        assert maps.isfinite().all(), size
        torch.testing.assert_close(
            maps.sum((1, 2, 3)), coarse.sum((1, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("wide", "padding"), [(25, 0), (25, 12), (5, 0)])
def test_evidence_of_a_bump_is_drawn_where_the_bump_is(wide, padding):
    """A planted truth: the sign of a bump decides, and a map says where it is."""
    half = 1 - (torch.arange(wide) - wide // 2).abs() / (wide // 2 + 1)
    conv = nn.Conv1d(1, 2, wide, padding=padding)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        conv.weight[:, 0] = torch.stack([-half, half])
        conv.bias.fill_(-1.0)
        model[4].weight.copy_(8 * torch.eye(2))
        model[4].bias.zero_()

    def bumps(at):
        labels = torch.arange(len(at)) % 2
        x = 0.1 * torch.randn(len(at), 1, 64)
        x[torch.arange(len(at)), 0, at] += 4.0 * (2 * labels - 1)
        return x, labels

    attr = InfoBottleneckAttribution(model.eval(), "1")
    loader = [bumps(torch.randint(2, 62, (64,))) for _ in range(8)]
    attr.fit(loader, steps=60, progress=False, bank_size=64)
    for at in (16, 32, 48):
        x, labels = bumps(torch.full((16,), at))
        drawn = attr.attribute(x, labels).sum(1).clamp_min(0).mean(0)
        centre = float(drawn @ torch.arange(64.0) / drawn.sum())
        assert centre == pytest.approx(at, abs=3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_have_no_gradient():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.Flatten(), nn.Linear(64, 3))
    found = places_of(model, torch.randint(9, (16, 8)), "1")
    assert list(found.values()) == [()]


class _Refused(torch.autograd.Function):
    """As a recurrent layer in eval mode on CUDA."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("backward can only be called in training mode")


class _Below(nn.Module):
    """Something below the layer that is read which lets no gradient of the input through."""

    def __init__(self, below):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.read = nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 3)
        self.below = below

    def forward(self, x):
        return self.fc(self.read(self.below(self.stem, x)).relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("below", [
    lambda stem, x: _Refused.apply(stem(x)),
    lambda stem, x: checkpoint(stem, x, use_reentrant=True),
    lambda stem, x: stem(x).detach(),
])
def test_a_fit_needs_no_gradient_below_the_layers(below):
    found = places_of(_Below(below), torch.randn(32, 3, 32, 32), "read")
    assert list(found.values()) == [()]


def test_a_spot_is_drawn_where_its_position_looks():
    """Position 3 of a stride of 8, centred on pixel 24 and not in the middle of 24 to 31."""
    spot = torch.zeros(1, 1, 8, 8)
    spot[..., 3, 3] = 2.0
    like = torch.zeros(1, 3, 64, 64)
    for offset, middle in ((0.0, 27.5), (-3.5 / 8, 24.0)):
        drawn = to_input([spot], like, places=[(Place(offset), Place(offset))]).sum(1)[0]
        assert float(drawn.sum()) == pytest.approx(2)
        centre = drawn.sum(0) @ torch.arange(64.0) / 2
        assert float(centre) == pytest.approx(middle, abs=1e-4)


def test_the_total_stays_on_any_grid():
    maps = [torch.randn(2, 1, 5, 5), torch.randn(2, 1, 3, 3)]
    drawn = to_input(maps, torch.zeros(2, 3, 31, 17), places=[
        (Place(-0.4), Place(0.3, 0.7)), (Place(), Place(0.1, 1.2))])
    wanted = 25 * sum(one.mean((1, 2, 3)) for one in maps) / 2
    torch.testing.assert_close(drawn.sum((1, 2, 3)), wanted)


@pytest.mark.parametrize(("old", "new"), [((4, 6), (8, 12)), ((4, 6), (7, 13)), ((8, 8), (4, 2))])
def test_no_offset_is_what_pytorch_does(old, new):
    maps = torch.randn(2, 3, *old)
    mode = {"mode": "area"} if new < old else {"mode": "bilinear", "align_corners": False}
    expected = F.interpolate(maps, new, **mode)
    tiny = 1e-12  # takes the way of offsets
    torch.testing.assert_close(resize(maps, new, [Place(tiny)] * 2), expected)
    torch.testing.assert_close(resize(maps, new, (), (Place(tiny), Place())), expected)


def test_an_offset_is_a_shift():
    row = torch.arange(6.0).view(1, 1, 6)
    shifted = resize(row, (6,), [Place(-0.5)])  # what lies half a cell before its middle
    assert shifted.flatten().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.0]
    back = resize(row, (6,), (), [Place(-0.5)])
    assert back.flatten().tolist() == [0.0, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert resize(row, (3,), (), [Place(-0.25)]).flatten().tolist() == pytest.approx([1 / 3, 2, 4])


def test_patterns_are_asked_where_positions_are():
    def log_p(x):
        return x[:, 0].log()  # the first half has all of it

    x, zeros = torch.ones(1, 8), torch.zeros(1, 8)
    even, moved = (half_contrasts(log_p, log_p(x), x, zeros, 1, 1, (4,), places)[0, 0].tolist()
                   for places in ((), [Place(-0.75)]))
    assert even == [1, 1, -1, -1]
    assert moved == [1, 1, 0.5, -1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_redundant_is_the_difference_and_layers_are_not_moved():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1),
                          nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()
    x = torch.randn(32, 3, 32, 32)
    for kind in (InfoBottleneckAttribution, LayerInfoBottleneckAttribution):
        attr = kind(model, "3")
        attr.fit([x], 3, progress=False, bank_size=64)
        for options in ({}, {"weighting": "none"}, {"refine_steps": 11}):
            general, sufficient, redundant = (
                attr.attribute(x[:3], 1, information=one, **options)
                for one in ("general", "sufficient", "redundant"))
            assert torch.equal(redundant, general - sufficient)
    assert attr.attribute(x[:3], 1).shape == (3, 1, 8, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_are_combined_where_they_look():
    """Position 12 of 40 and position 8 of 32 look at the same place of 64."""
    spots = [torch.zeros(1, 1, 40), torch.zeros(1, 1, 32)]
    spots[0][..., 12] = spots[1][..., 8] = 1.0
    both = joined(spots, [[Place(scale=40 / 64)], [Place(scale=32 / 64)]])
    torch.testing.assert_close(both, spots[0])
    model = nn.Sequential(nn.Conv1d(2, 8, 25), nn.ReLU(), nn.Conv1d(8, 8, 9), nn.ReLU(),
                          nn.Flatten(), nn.Linear(8 * 32, 3)).eval()
    x = torch.randn(64, 2, 64)
    attr = InfoBottleneckAttribution(model, ["1", "3"], head_layers=[])
    attr.fit([x], 20, progress=False, bank_size=64)
    layers = LayerInfoBottleneckAttribution(model, ["1", "3"], head_layers=[])
    layers.fit([x], 20, progress=False, bank_size=64)
    fine, coarse = layers.evidence(x[:3])
    (apart,), (onto,) = ([Place(scale=n / 64)] for n in (32, 40))
    expected = (fine + resize(coarse, (40,), [apart], [onto])) / 2
    torch.testing.assert_close(attr.evidence(x[:3]), expected)
