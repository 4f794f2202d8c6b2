"""Captum's own methods, with its defaults where there are any."""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial
from typing import Any

import torch
from captum.attr import (
    LRP,
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, fx, nn

from captum_mi.model.hooks import capture
from peers.method import Method, NotApplicable, site_of, tracing

BOTH = ("signed", "absolute")


def grad_cam(
    model: nn.Module, layer: str, x: Tensor, target: Tensor, args: Any = None, relu: bool = True
) -> Tensor:
    """Grad-CAM at a layer, of the input's size: ``(N, 1, H, W)``."""
    coarse = coarse_grad_cam(model, layer, x, target, args, relu)
    return LayerAttribution.interpolate(coarse, x.shape[2:], "bilinear")


def coarse_grad_cam(
    model: nn.Module, layer: str, x: Tensor, target: Tensor, args: Any = None, relu: bool = True
) -> Tensor:
    """Grad-CAM at a layer's own resolution."""
    cam = LayerGradCam(model, model.get_submodule(layer))
    with capture(model, [layer]) as captured:
        result: Tensor = cam.attribute(x, target, args, relu_attributions=relu)
    layout = site_of(layer, captured[layer], x).layout
    if layout != "channels_first":
        raise NotApplicable(f"Captum's Grad-CAM takes axis 1 for channels; {layer} has {layout}")
    return result


def integrated_gradients(model: nn.Module, x: Tensor, target: Tensor, args: Any = None) -> Tensor:
    """Integrated Gradients of 50 steps, ten at once."""
    return IntegratedGradients(model).attribute(
        x, target=target, additional_forward_args=args, n_steps=50,
        internal_batch_size=10 * len(x))


def smoothgrad(model: nn.Module, x: Tensor, target: Tensor, magnitudes: bool = False) -> Tensor:
    """SmoothGrad of 50 samples, ten at once."""
    return NoiseTunnel(Saliency(model)).attribute(
        x, nt_samples=50, nt_samples_batch_size=10, stdevs=0.3, target=target, abs=magnitudes)


def occlusion(model: nn.Module, x: Tensor, target: Tensor, args: Any = None) -> Tensor:
    """Occlusion by grey patches of 16x16 at every eighth pixel."""
    return Occlusion(model).attribute(
        x, (3, 16, 16), (3, 8, 8), target=target, additional_forward_args=args,
        perturbations_per_eval=4)


def methods(model: nn.Module, deepest: str, seed: int) -> dict[str, Method]:
    """Captum's methods.

    Args:
        model: the network.
        deepest: the last layer with positions, for Grad-CAM.
        seed: of the methods that draw noise.
    """
    separate = cache(lambda: without_shared_modules(model))
    shap, ablation = GradientShap(model), FeatureAblation(model)

    def smooth(x: Tensor, t: Tensor, magnitudes: bool) -> Tensor:
        torch.manual_seed(seed)
        return smoothgrad(model, x, t, magnitudes)

    def gradient_shap(x: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return shap.attribute(x, torch.zeros_like(x[:1]), n_samples=50, stdevs=0.09, target=t)

    def cam(x: Tensor, t: Tensor) -> Tensor:
        return grad_cam(model, deepest, x, t).expand_as(x) / x.shape[1]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        # As Captum's own class, whose one model would have to call the layer and share no ReLU.
        coarse = coarse_grad_cam(model, deepest, x, t)
        backprop = GuidedBackprop(separate()).attribute(x, t)
        return LayerAttribution.interpolate(coarse, x.shape[2:]) * backprop

    def by_rules(method: DeepLift | LRP, x: Tensor, t: Tensor) -> Tensor:
        try:
            result: Tensor = method.attribute(x, target=t)
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            raise NotApplicable(str(error)) from error
        return result

    def tiles(x: Tensor, t: Tensor) -> Tensor:
        return ablation.attribute(x, target=t, feature_mask=_tile_numbers(x))

    return {
        "Saliency": Method(lambda x, t: Saliency(model).attribute(x, t), ("absolute",)),
        "Input x Gradient": Method(lambda x, t: InputXGradient(model).attribute(x, t), BOTH),
        "Integrated Gradients 50": Method(partial(integrated_gradients, model), BOTH),
        "SmoothGrad 50": Method(lambda x, t: smooth(x, t, False), BOTH),
        "SmoothGrad 50 of magnitudes": Method(lambda x, t: smooth(x, t, True), ("absolute",)),
        "GradientSHAP 50": Method(gradient_shap, BOTH, batch=5),
        "DeepLift": Method(lambda x, t: by_rules(DeepLift(separate()), x, t), BOTH),
        "LRP": Method(lambda x, t: by_rules(LRP(copy.deepcopy(separate())), x, t), BOTH),
        "Occlusion 16/8": Method(partial(occlusion, model)),
        "Feature Ablation 8x8": Method(tiles),
        "Grad-CAM": Method(cam, ("positive",)),
        "Guided Grad-CAM": Method(guided, ("positive",)),
    }


def _tile_numbers(x: Tensor, tile: int = 8) -> Tensor:
    rows, columns = (torch.arange(length, device=x.device) // tile for length in x.shape[2:])
    return (rows[:, None] * (int(columns[-1]) + 1) + columns)[None, None]


def without_shared_modules(model: nn.Module) -> nn.Module:
    """A copy in which no module runs twice or in place, as DeepLift and LRP ask for.

    Residual networks use one ReLU several times; the traced copy gives each use its own.
    """
    with tracing():
        graph = fx.symbolic_trace(copy.deepcopy(model))
    used: set[str] = set()
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        module = graph.get_submodule(node.target)
        if hasattr(module, "inplace"):
            module.inplace = False
        if node.target in used:
            name = f"{node.target}_again_{node.name}".replace(".", "_")
            graph.add_submodule(name, copy.deepcopy(module))
            node.target = name
        used.add(node.target)
    graph.recompile()
    warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
    return graph.eval()
