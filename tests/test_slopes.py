"""Slopes of a decision by alpha: against finite differences, and what they add up to."""

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.refinement import measured_shares, shared_noise
from captum_mi.slopes import Decision


@pytest.fixture
def parts(net, images, quick_fit):
    """A fit with two bottlenecks, in float64: its passes, networks and classes."""
    attr = quick_fit(
        InfoBottleneckAttribution(
            net.double(), ["stage1", "stage2"], head_layers=[]),
        [images.double()],
    )
    with attr._reading():
        passes, networks = attr._reading_passes(), attr.networks.double()
        inputs = (images[:4].double(),)
        first = passes.first(inputs, ())
        yield passes, networks, networks.output.double(), inputs, first


def test_a_slope_at_a_level_by_finite_differences(parts):
    passes, networks, classes, inputs, first = parts
    z, index = networks.standardise(first.layers), torch.tensor([[0], [1], [2], [1]])
    noise = shared_noise({site: z[site] for site in networks.noised_sites}, 0)
    level, step = torch.full((4, 1), 0.3, dtype=torch.float64), 1e-6
    slope = Decision(passes, networks, classes, inputs, (), z, index).slope_at(level, noise)

    def log_p(change):
        alpha = torch.full((4, 1, *networks.positions(z)), 0.3, dtype=torch.float64)
        alpha[..., 1, 2] += change
        logits = networks.spread(torch.logit(alpha), z)
        second = passes.second(inputs, (), networks.injections(logits, noise))
        return second.prediction.log_softmax(1).gather(1, index)[:, 0]

    expected = (log_p(-step) - log_p(step)) / (2 * step)
    torch.testing.assert_close(slope[:, 0, 1, 2], expected, rtol=1e-4, atol=1e-7)


def test_measured_shares_add_up_to_what_the_decision_loses(parts, monkeypatch):
    passes, networks, classes, inputs, first = parts
    z, index = networks.standardise(first.layers), torch.tensor([[0], [1], [2], [1]])
    noise = shared_noise({site: z[site] for site in networks.noised_sites}, 0)
    monkeypatch.setattr("captum_mi.refinement.shared_noise", lambda z, seed: noise)
    measured = measured_shares(Decision(passes, networks, classes, inputs, (), z, index), 400)
    everywhere = {site: torch.full_like(z[site][:, :1], 50.0) for site in networks.noised_sites}
    last = passes.second(inputs, (), networks.injections(everywhere, noise))
    lost = [classes.log_probability(one.prediction, index) for one in (first, last)]
    torch.testing.assert_close(measured.sum((1, 2, 3)), lost[0] - lost[1], rtol=0.02, atol=0.02)


class Detached(nn.Module):
    """Nothing above its first layer can be differentiated."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).detach()


def test_a_prediction_that_cannot_be_differentiated_warns(net, images):
    attr = InfoBottleneckAttribution(Detached(net), "net.stage1", alpha=0.3)
    with pytest.warns(UserWarning, match="cannot be differentiated"):
        attr.fit([images], steps=3, progress=False)


def test_a_fit_of_one_step_does_not_take_its_first_shares_for_none(net, images, recwarn):
    InfoBottleneckAttribution(net, "stage1").fit([images], steps=1, progress=False)
    assert not any("cannot be differentiated" in str(one.message) for one in recwarn)
