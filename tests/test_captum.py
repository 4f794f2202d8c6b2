"""Captum's own tools and tests, on our classes."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from captum.attr import Attribution, LayerAttribution, LayerGradCam, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.gen_test_utils import get_target_layer, parse_test_config
from captum.testing.attr.helpers.test_config import config
from captum.testing.helpers.basic_models import BasicModel_MultiLayer
from torch import Tensor

from captum_mi import LayerInfoBottleneckAttribution


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(fitted, images, nt_type):
    tunnel = NoiseTunnel(fitted)
    result = tunnel.attribute(
        images[:4], nt_type=nt_type, nt_samples=3, nt_samples_batch_size=2, stdevs=0.1,
        target=[0, 1, 2, 3],
    )
    assert result.shape == images[:4].shape
    quiet = tunnel.attribute(images[:4], nt_samples=2, stdevs=0.0, target=1)
    torch.testing.assert_close(quiet, fitted.attribute(images[:4], target=1))


def test_infidelity_and_sensitivity(fitted, net, images):
    def perturb(x):
        noise = 0.1 * torch.randn_like(x)
        return noise, x - noise

    maps = fitted.attribute(images[:4], target=1)
    value = infidelity(net, perturb, images[:4], maps, target=1, normalize=True)
    assert value.shape == (4,)
    assert torch.isfinite(value).all()
    sensitivity = sensitivity_max(fitted.attribute, images[:4], target=1, n_perturb_samples=2)
    assert sensitivity.shape == (4,)
    assert torch.isfinite(sensitivity).all()


def test_visualization(fitted, images):
    maps = fitted.attribute(images[:1], target=1)[0].permute(1, 2, 0).numpy()
    figure, _ = viz.visualize_image_attr_multiple(
        maps, images[0].permute(1, 2, 0).sigmoid().numpy(),
        ["original_image", "heat_map", "blended_heat_map"], ["all", "all", "absolute_value"],
        use_pyplot=False, show_colorbar=True,
    )
    assert len(figure.axes) > 3


def layer_configs():
    return [
        pytest.param(one, id=one["name"])
        for one in config
        if LayerGradCam in one["algorithms"] and "layer" in one
    ]


def fitted_for(one):
    """A model, a fitted attribution on the configuration's layer, and its arguments."""
    _, model, args, layer, _, _ = parse_test_config(one)
    model, args = copy.deepcopy(model), copy.deepcopy(args)
    attr = LayerInfoBottleneckAttribution(model, get_target_layer(model, layer))
    inputs = args["inputs"]
    loader = [((inputs if isinstance(inputs, tuple) else (inputs,)), None)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attr.fit(
            loader, steps=1, progress=False, bank_size=16,
            additional_forward_args=args.get("additional_forward_args"),
        )
    return model, attr, args, layer


def quietly(call, args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(**args)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("one", layer_configs())
def test_captums_targets(one):
    """A batch with a list of targets equals its examples one by one (captum: test_targets)."""
    _, attr, args, _ = fitted_for(one)
    inputs, targets = as_tuple(args["inputs"]), args["target"]
    several = isinstance(targets, (list, Tensor))
    whole = as_tuple(attr.attribute(**args))
    for i in range(len(inputs[0])):
        single = dict(args)
        single["inputs"] = tuple(x[i : i + 1] for x in inputs)
        if not isinstance(args["inputs"], tuple):
            single["inputs"] = single["inputs"][0]
        if "additional_forward_args" in args:
            single["additional_forward_args"] = tuple(
                arg[i : i + 1] if isinstance(arg, Tensor) else arg
                for arg in as_tuple(args["additional_forward_args"])
            )
        forms = [targets[i], targets[i : i + 1]] if several else [targets]
        for form in forms:
            result = as_tuple(attr.attribute(**{**single, "target": form}))
            for a, b in zip(whole, result):
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=1e-4)


class Failing(torch.nn.Module):
    def forward(self, *args, **kwargs):
        raise AssertionError("Raising error on execution")


@pytest.mark.parametrize("mode", ["normal", "incorrect_target", "invalid_module"])
@pytest.mark.parametrize("one", layer_configs())
def test_captums_hook_removal(one, mode):
    """No hook is left, also after an error (captum: test_hook_removal)."""
    model, attr, args, layer = fitted_for(one)
    if mode == "normal":
        attr.attribute(**args)
    elif mode == "incorrect_target":
        with pytest.raises(AssertionError):
            attr.attribute(**{**args, "target": (9999,) * 20})
    else:
        parent, _, child = layer.rpartition(".")
        setattr(model.get_submodule(parent), child, Failing())
        with pytest.raises(AssertionError, match="Raising error on execution"):
            quietly(attr.attribute, args)  # the weights have changed, of layers that had any
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_layers_in_tuples_and_lists():
    model, rows = BasicModel_MultiLayer(multi_input_module=True), torch.randn(4, 3)
    attr = LayerInfoBottleneckAttribution(model, ["multi_relu", "linear1", "linear0"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attr.fit([rows], steps=1, progress=False)
    pair, first, second = attr.attribute(rows, target=0)
    assert isinstance(pair, tuple)
    assert [part.shape for part in pair] == [(4, 1), (4, 1)]
    assert first.shape == second.shape == (4, 1)


def test_importing_the_package_adds_nothing_heavy_to_captum():
    code = (
        "import sys, captum.attr; before = set(sys.modules); import captum_mi; "
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(added & {'matplotlib', 'sklearn', 'PIL', 'pandas'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_classes_are_captums(fitted, net, images, quick_fit):
    assert isinstance(fitted, Attribution)
    layered = quick_fit(LayerInfoBottleneckAttribution(net, "stage2"), [images])
    assert isinstance(layered, LayerAttribution)
    maps = layered.attribute(images, target=0)
    assert LayerAttribution.interpolate(maps, (12, 12), "bilinear").shape == (32, 1, 12, 12)
