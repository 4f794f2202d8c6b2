"""Cascading randomisation changes what depends on the parameters, and nothing of the model."""

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.metrics import cascading_randomization, structural_similarity


def test_similarity_is_one_for_the_same_map_whatever_its_scale():
    maps = torch.rand(3, 16, 16)
    torch.testing.assert_close(structural_similarity(5 * maps - 2, maps), torch.ones(3))
    assert (structural_similarity(torch.rand(3, 16, 16), maps) < 0.3).all()
    assert torch.isfinite(structural_similarity(torch.zeros(3, 16, 16), maps)).all()


def test_a_map_changes_from_the_first_step_on_that_it_depends_on(net, images):
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    early = cascading_randomization(net, lambda copy: copy.stage1(images).mean(1).detach(), seed=7)
    assert early.layers == ["fc", "stage2", "stage1"]
    assert early.similarity.shape == (3, 32)
    torch.testing.assert_close(early.similarity[:2], torch.ones(2, 32))
    assert early.similarity[2].mean() < 0.9
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_edge_detectors_fail_it(net, images):
    result = cascading_randomization(net, lambda copy: images.diff(dim=3).abs().sum(1))
    torch.testing.assert_close(result.similarity, torch.ones_like(result.similarity))


def test_it_takes_a_fit_bound_to_the_copy(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1"), [images], steps=20)
    result = cascading_randomization(
        net, lambda copy: attr.bind(copy).attribute(images, 1).sum(1), ["fc", "stage2"]
    )
    torch.testing.assert_close(result.similarity[0], torch.ones(32))  # fc lies above all heads
    assert result.similarity[1].mean() < 0.99


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


def test_parameters_that_nothing_initialises_are_an_error():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(Scaled()))
    with pytest.raises(ValueError, match="'1.0' .Scaled. has parameters and no reset_parameters"):
        cascading_randomization(model, lambda copy: torch.rand(1, 16, 16))
