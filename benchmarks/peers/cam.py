"""Grad-CAM++ and LayerCAM of the ``grad-cam`` package (Gildenblat et al.)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peers.method import Method, per_channel, site_of


def methods(model: nn.Module, deepest: str) -> dict[str, Method]:
    """The two methods at the deepest layer; none without the package."""
    try:
        from pytorch_grad_cam import GradCAMPlusPlus, LayerCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        return {}

    def of(kind: type) -> Method:
        def explain(x: Tensor, t: Tensor) -> Tensor:
            targets = [ClassifierOutputTarget(int(one)) for one in t]

            def maps(output: Tensor) -> Tensor:
                return site_of(deepest, output, x).view(output)

            with kind(model=model, target_layers=[model.get_submodule(deepest)],
                      reshape_transform=maps) as cam:
                heat = torch.from_numpy(cam(input_tensor=x, targets=targets))
            return per_channel(heat.to(x), x)

        return Method(explain, ("positive",))

    return {"Grad-CAM++": of(GradCAMPlusPlus), "LayerCAM": of(LayerCAM)}
