"""Small models and data that the tests share. Everything runs on the CPU in seconds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_mi import InfoBottleneckAttribution
from captum_mi.datasets import DigitResNet, make_scenes

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # which share the cores
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))


class SmallNet(nn.Module):
    """Two convolutional stages, batch normalisation, dropout, and an in-place ReLU."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.stage2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(16, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = self.relu(self.stage2(self.pool(self.stage1(x))))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.dropout(self.embed(x)))
        return out


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def net() -> SmallNet:
    return SmallNet().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def digits() -> tuple[InfoBottleneckAttribution, Tensor, Tensor]:
    """A fit to digit scenes, to be left as it is, with images and their digits."""
    scenes = make_scenes(256, seed=0)
    torch.manual_seed(0)
    model = DigitResNet((8, 16, 32, 32)).fit(scenes, 6, progress=False)
    attr = InfoBottleneckAttribution(model)
    attr.fit(list(scenes.images.split(32)), 30, progress=False, bank_size=512)
    return attr, scenes.images[:40], scenes.labels[:40, 0]


@pytest.fixture
def quick_fit() -> Callable[..., Any]:
    """Fit an attribution for a few steps, without bars or the warnings that few steps deserve."""

    def fit(attr: Any, data: Any, steps: int = 3, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            options = {"bank_size": 256, "progress": False, **options}
            attr.fit(data, steps=steps, **options)
        return attr

    return fit


@pytest.fixture
def fitted(
    net: SmallNet, images: Tensor, quick_fit: Callable[..., Any]
) -> InfoBottleneckAttribution:
    attr: InfoBottleneckAttribution = quick_fit(
        InfoBottleneckAttribution(net, ["stage1", "stage2"]), [images[:16], images[16:]]
    )
    return attr
