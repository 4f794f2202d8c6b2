"""A small ResNet for digit scenes, of torchvision's blocks and layer names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from tqdm.auto import tqdm

from captum_mi.datasets.digit_scenes import Scenes

__all__ = ["DigitResNet"]


class DigitResNet(nn.Module):
    """``(N, 1, 48, 48) -> (N, 10)``, with 24, 12, 6 and 3 positions a side in its four stages.

    Args:
        widths: channels of the four stages.
        classes: number of classes.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[0], 1)
        self.layer2 = _stage(widths[0], widths[1], 2)
        self.layer3 = _stage(widths[1], widths[2], 2)
        self.layer4 = _stage(widths[2], widths[3], 2)
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def fit(
        self, scenes: Scenes, epochs: int, batch_size: int = 64, lr: float = 3e-3, seed: int = 0,
        progress: bool = True,
    ) -> DigitResNet:
        """Train on scenes of one digit, by cross-entropy with one-cycle AdamW, in whole batches.

        Returns:
            Itself, in eval mode.
        """
        if epochs < 1:
            return self.eval()
        batch_size = min(batch_size, len(scenes.images))
        steps = epochs * (len(scenes.images) // batch_size)
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        generator = torch.Generator().manual_seed(seed)
        self.train()
        bar = tqdm(total=steps, desc="train", unit="step", disable=not progress)
        for _ in range(epochs):
            order = torch.randperm(len(scenes.images), generator=generator)
            for batch in order.split(batch_size):
                if len(batch) < batch_size:
                    continue
                loss = F.cross_entropy(self(scenes.images[batch]), scenes.labels[batch, 0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
        bar.close()
        return self.eval()


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1 or n_in != n_out:
        shortcut = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
        )
    return nn.Sequential(BasicBlock(n_in, n_out, stride, shortcut))
