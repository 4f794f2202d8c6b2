"""Warnings point at the user's code, not at the package or at Captum."""

from __future__ import annotations

import pytest
import torch
from captum.attr import NoiseTunnel

from captum_mi import InfoBottleneckAttribution


@pytest.mark.parametrize("call", [
    lambda attr, x: attr.attribute(x, 1),
    lambda attr, x: NoiseTunnel(attr).attribute(x, nt_samples=2, target=1),
    lambda attr, x: attr.evidence(x),
])
def test_changed_weights_are_said_at_the_call(net, images, quick_fit, call):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    with torch.no_grad():
        net.fc.weight.mul_(2)
    with pytest.warns(UserWarning, match="weights have changed since the fit") as found:
        call(attr, images[:2])
    assert {warning.filename for warning in found} == {__file__}


def test_what_a_fit_warns_of_is_said_at_its_call(net, images):
    with pytest.warns(UserWarning, match=r"kappa, is 1e-08") as found:
        InfoBottleneckAttribution(net, "stage2").fit([images], 3, kappa=1e-8, progress=False)
    assert {warning.filename for warning in found} == {__file__}
