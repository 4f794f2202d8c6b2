"""RISE of the ``xaitk-saliency`` package (Petsiuk et al., 2018, https://arxiv.org/abs/1806.07421)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from peers.method import Method, per_channel

_MASKS, _CELLS, _KEPT = 500, 7, 0.5


def methods(model: nn.Module, seed: int) -> dict[str, Method]:
    """RISE with 500 masks of 7x7 cells, half of them kept; none without the package."""
    try:
        from smqtk_classifier.interfaces.classify_image import ClassifyImage
        from xaitk_saliency.impls.gen_image_classifier_blackbox_sal.rise import RISEStack
    except ImportError:
        return {}

    class OneClass(ClassifyImage):
        """The model's probability of one class, of normalised images (H, W, 3)."""

        def __init__(self, target: int, like: Tensor) -> None:
            self.target, self.like = target, like

        def get_labels(self) -> list[int]:
            return [self.target]

        @torch.no_grad()
        def classify_images(self, images):  # type: ignore[no-untyped-def]
            batch: list[np.ndarray] = []
            for image in images:
                batch.append(image)
                if len(batch) == 100:
                    yield from self._classify(batch)
                    batch = []
            if batch:
                yield from self._classify(batch)

        def _classify(self, batch: list[np.ndarray]) -> list[dict[int, float]]:
            x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(self.like)
            p = model(x).softmax(1)[:, self.target]
            return [{self.target: float(value)} for value in p]

        def get_config(self) -> dict[str, object]:
            return {}

    # Debiased: else a constant stands below every map, and shares of the heat are that of the
    # constant.
    rise = RISEStack(_MASKS, _CELLS, _KEPT, seed=seed, debiased=True)
    rise.fill = 0.0  # the mean colour

    def explain(x: Tensor, t: Tensor) -> Tensor:
        heat = [
            rise(one.permute(1, 2, 0).cpu().numpy(), OneClass(int(target), one))[0]
            for one, target in zip(x, t)
        ]
        return per_channel(torch.from_numpy(np.stack(heat)).to(x), x)

    return {f"RISE {_MASKS}": Method(explain, batch=5)}
