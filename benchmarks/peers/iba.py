"""IBA per sample: a bottleneck optimised anew for each image (Schulz et al., 2020).

https://arxiv.org/abs/2001.00396, with the settings of the paper: beta 10, ten steps of Adam on ten
noisy copies, alpha smoothed by a Gaussian of standard deviation 1. All images of a batch are
optimised at once; Adam works element by element, so that none depends on its batch.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from captum_mi.model.hooks import capture, replace_output
from peers.method import Method, per_channel, site_of

_MIN_STD, _ACTIVE = 0.01, 0.01


class PerSampleIBA:
    """Bottleneck at one layer.

    Args:
        model: the network.
        layer: name of the layer where noise is injected.
        images: photographs that the features' moments are taken of, one per feature.
        beta: weight of the mean capacity.
        steps: Adam steps.
        copies: noisy copies per step.
        lr: learning rate.
        seed: of the noise, which is the same for every image.
    """

    def __init__(
        self, model: nn.Module, layer: str, images: Tensor, beta: float = 10.0, steps: int = 10,
        copies: int = 10, lr: float = 1.0, seed: int = 0,
    ) -> None:
        self.model, self.layer = model, layer
        with capture(model, [layer]) as captured, torch.no_grad():
            model(images[:1])
        self.site = site_of(layer, captured[layer], images)
        self.beta, self.steps, self.copies, self.lr, self.seed = beta, steps, copies, lr, seed
        features = torch.cat([self.features(part) for part in images.split(100)])
        self.mean, self.std = features.mean(0), features.std(0, correction=0)
        self.active = ((features > 0).float().mean(0) > _ACTIVE).to(features)
        self.std = self.std.clamp_min(_MIN_STD)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features ``(n, C, h, w)`` of the layer."""
        with capture(self.model, [self.layer]) as captured:
            self.model(images)
        return self.site.of(captured)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation and active features, resized for images of another size."""
        parts = (self.mean, self.std, self.active)
        if features.shape[1:] == self.mean.shape:
            return parts
        resized = (F.interpolate(part[None], features.shape[2:])[0] for part in parts)
        mean, std, active = resized
        return mean, std, active

    @torch.enable_grad()
    def capacity(self, images: Tensor, targets: Tensor) -> Tensor:
        """Capacity that the optimised bottlenecks leave, ``(n, h, w)``, in bits."""
        features = self.features(images)
        mean, std, active = self.moments(features)
        z = (features - mean) / std
        logit = torch.full_like(z, 5.0).requires_grad_()
        optimizer = torch.optim.Adam([logit], lr=self.lr)
        generator = torch.Generator().manual_seed(self.seed)
        repeated = images.repeat_interleave(self.copies, 0)
        labels = targets.repeat_interleave(self.copies, 0)
        for _ in range(self.steps):
            kept = gaussian_blur(torch.sigmoid(logit), [5, 5], [1.0, 1.0])
            capacity = self._capacity(z, kept) * active
            noise = torch.randn((1, self.copies, *z.shape[1:]), generator=generator).to(z)
            noised = kept[:, None] * z[:, None] + (1 - kept[:, None]) * noise
            x = ((noised * std + mean) * active).flatten(0, 1)
            put = {self.layer: lambda output, x=x: self.site.put(output, x)}
            with replace_output(self.model, put):
                logits = self.model(repeated)
            task = F.cross_entropy(logits, labels, reduction="none")
            task = task.unflatten(0, (-1, self.copies)).mean(1)
            loss = task + self.beta * capacity.flatten(1).mean(1)
            logit.grad = torch.autograd.grad(loss.sum(), logit)[0]
            optimizer.step()
        return capacity.detach().sum(1) / math.log(2)

    @staticmethod
    def _capacity(z: Tensor, kept: Tensor) -> Tensor:
        variance = (1 - kept).square()
        return -0.5 * (1 + variance.clamp_min(1e-12).log() - (kept * z).square() - variance)


def methods(model: nn.Module, layers: list[str], images: Tensor, seed: int) -> dict[str, Method]:
    """IBA at each of some layers."""

    def at(layer: str) -> Method:
        bottleneck = cache(lambda: PerSampleIBA(model, layer, images, seed=seed))

        def explain(x: Tensor, t: Tensor) -> Tensor:
            coarse = bottleneck().capacity(x, t)[:, None]
            fine = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
            return per_channel(fine[:, 0], x)

        return Method(explain, batch=10)

    return {f"IBA per sample, {layer}": at(layer) for layer in layers}
