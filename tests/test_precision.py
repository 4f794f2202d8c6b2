"""Mixed precision: the model alone runs in it, and maps hardly change."""

from __future__ import annotations

import copy

import pytest
import torch

from captum_mi import InfoBottleneckAttribution
from captum_mi.model.passes import Passes
from captum_mi.model.precision import full_precision


def autocast(dtype):
    return torch.autocast("cpu", dtype)


def errors(digits, dtype, **options):
    """Of maps in mixed precision, as shares of each map's maximum ``(n, pixels)``."""
    attr, images, labels = digits
    exact = attr.attribute(images, labels, **options)
    with autocast(dtype):
        mixed = attr.attribute(images, labels, **options)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)  # the model did run in it
    return ((mixed - exact).abs() / exact.abs().amax((1, 2, 3), keepdim=True)).flatten(1)


@pytest.mark.parametrize("options", [{}, {"weighting": "none"}, {"information": "general"}])
def test_maps_in_float16_and_in_bfloat16_are_those_in_float32(digits, options):
    """Nearly everywhere to a hundredth of the maximum in float16, on average in bfloat16."""
    in_float16 = errors(digits, torch.float16, **options)
    assert in_float16.quantile(0.99) < 0.01
    assert in_float16.max() < 0.03
    assert errors(digits, torch.bfloat16, **options).mean(1).max() < 0.01


@pytest.mark.parametrize(
    "options", [{"estimator": "infomax"}, {"alpha_steps": 2}])
def test_every_pass_runs_in_mixed_precision(digits, options):
    assert errors(digits, torch.float16, **options).max() < 0.05


def test_gradients_in_mixed_precision_measure_the_same_shares(digits):
    """A unit at the edge of its ReLU can flip, and with it the slope at one position."""
    in_float16 = errors(digits, torch.float16, refine_steps=9)
    assert in_float16.quantile(0.99) < 0.02
    assert in_float16.quantile(0.999) < 0.05
    assert in_float16.max() < 0.1


def test_fitting_inside_autocast_is_amp(digits):
    """And our own networks stay in float32, to the last bit."""
    attr, images, labels = digits
    maps = []
    for dtype, amp in ((torch.bfloat16, None), (None, True)):
        again = InfoBottleneckAttribution(attr.forward_func)
        with autocast(dtype or torch.float16) if dtype else torch.no_grad():
            again.fit([images], 2, amp=amp, progress=False, bank_size=64)
        maps.append(again.attribute(images, labels))
    assert torch.equal(*maps)


def test_the_callers_autocast_is_left_as_found(digits):
    attr, images, _ = digits
    with autocast(torch.bfloat16):
        attr.attribute(images, 0)
        assert torch.is_autocast_enabled("cpu")
        assert torch.nn.functional.linear(images, torch.ones(2, 48)).dtype == torch.bfloat16


def test_passes_in_mixed_precision_see_changed_weights(digits):
    """As of a copy that is fine-tuned; PyTorch keeps casts inside of another autocast."""
    model = copy.deepcopy(digits[0].forward_func).requires_grad_(True)
    passes = Passes(model, [], amp=torch.bfloat16)
    with full_precision(model):
        before = passes.first((digits[1],), ()).output
        with torch.no_grad():
            model.fc.weight.mul_(2)
        assert not torch.equal(passes.first((digits[1],), ()).output, before)


def test_a_downstream_module_has_the_model_s_precision(net, images, quick_fit):
    expected, found = (
        quick_fit(InfoBottleneckAttribution(
            model, "stage2", global_layer="dropout", downstream=model.fc), [x]).evidence(x)
        for model, x in ((net, images), (copy.deepcopy(net).bfloat16(), images.bfloat16())))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.1 * expected.abs().max()
