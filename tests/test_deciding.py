"""Layers that the prediction does not depend on are not read by default, and told if named."""

import warnings

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution


def block(before, after, stride=2):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.ReLU())


class Decoded(nn.Module):
    """Classes, and a decoder whose picture is thrown away or handed out."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = block(3, 8), block(8, 16), block(16, 32)
        self.up = nn.Upsample(scale_factor=2)
        self.first, self.second = block(32, 16, 1), block(16, 8, 1)
        self.third, self.fourth = block(8, 8, 1), block(8, 8, 1)
        self.classes = nn.Linear(32, 5)

    def forward(self, x):
        code = self.three(self.two(self.one(x)))
        x = self.second(self.up(self.first(self.up(code))))
        self.fourth(self.up(self.third(self.up(x))))
        return self.classes(code.mean((2, 3)))


class Auxiliary(nn.Module):
    """A second classifier that is deeper than what the first one rests on."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.classes = block(3, 8), block(8, 16), nn.Linear(16, 5)
        self.beside, self.deeper = block(16, 16), block(16, 16)

    def forward(self, x):
        code = self.two(self.one(x))
        self.deeper(self.beside(code))
        return self.classes(code.mean((2, 3)))


@pytest.fixture
def batches():
    return list(torch.randn(32, 3, 32, 32, generator=torch.manual_seed(0)).split(16))


@pytest.mark.parametrize(
    ("model", "layers", "deepest"),
    [(Decoded, ["one", "two"], ["three"]), (Auxiliary, ["one"], ["two"])],
)
def test_default_layers_lie_on_the_way_to_the_output(model, layers, deepest, batches, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(model()), batches)
    assert attr.layers == layers
    assert attr.head_layers == deepest
    assert set(attr.context_layers) == {*layers, *deepest}


def test_a_named_layer_beside_the_way_is_told(batches):
    attr = InfoBottleneckAttribution(Auxiliary(), ["one", "two", "beside"])
    with pytest.warns(UserWarning, match="the same whatever layer 'beside' returns") as told:
        attr.fit(batches, 2, progress=False)
    assert not [one for one in told if "'one'" in str(one.message) or "'two'" in str(one.message)]


def test_what_y_depends_on_counts_too(batches):
    """The classes of a downstream function come from y alone, which lies beside the output."""
    attr = InfoBottleneckAttribution(
        Auxiliary(), "beside", global_layer="deeper.1", downstream=lambda y: y.mean((2, 3)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("error", ".*whatever layer.*")
        attr.fit(batches, 2, progress=False)
