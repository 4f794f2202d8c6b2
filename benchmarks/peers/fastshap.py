"""FastSHAP: Shapley values of tiles by one pass of a trained explainer (Jethani et al., 2022).

https://arxiv.org/abs/2107.07436. A *surrogate* is the classifier, tuned to predict the same from
images without some of their tiles. The *explainer* reads the stages of another copy through a
feature pyramid and returns a value per tile and class. It minimises the weighted least squares
of the Shapley kernel: sets of tiles are drawn from it, in pairs with their complements, and the
values are shifted so that they sum to what all tiles are worth (additive efficient normalisation).
"""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork
from tqdm import tqdm

from peers.method import Method, per_channel, site_of, tracing

_TILE = 8


def shapley_sets(n: int, players: int, generator: torch.Generator) -> Tensor:
    """Random sets ``(2 n, players)``, boolean: n by the Shapley kernel, and their complements."""
    size = torch.arange(1, players)
    weights = 1 / (size * (players - size))
    sizes = size[torch.multinomial(weights, n, replacement=True, generator=generator)]
    rank = torch.rand(n, players, generator=generator).argsort(1).argsort(1)
    kept = rank < sizes[:, None]
    return torch.cat([kept, ~kept])


def masked(images: Tensor, kept: Tensor) -> Tensor:
    """Images with the tiles that are not kept at 0, the mean colour."""
    h, w = images.shape[2:]
    mask = kept.view(len(kept), 1, h // _TILE, w // _TILE).to(images)
    return images * mask.repeat_interleave(_TILE, 2).repeat_interleave(_TILE, 3)


class Explainer(nn.Module):
    """Values ``(n, classes, rows, columns)`` of tiles, not yet normalised."""

    def __init__(self, model: nn.Module, stages: list[str], example: Tensor, width: int = 128):
        super().__init__()
        with tracing():
            self.backbone = create_feature_extractor(
                copy.deepcopy(model), {name: str(i) for i, name in enumerate(stages)})
        with torch.no_grad():
            features = self.backbone(example)
            classes = model(example).shape[1]
        self.sites = {name: site_of(name, one, example) for name, one in features.items()}
        channels = [site.channels for site in self.sites.values()]
        self.pyramid = FeaturePyramidNetwork(channels, width)
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
                                  nn.Conv2d(width, classes, 1))
        nn.init.zeros_(self.head[-1].weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        finest = self.pyramid({name: site.view(features[name])
                               for name, site in self.sites.items()})["0"]
        values: Tensor = self.head(finest)
        h, w = images.shape[2:]
        return F.interpolate(values, (h // _TILE, w // _TILE), mode="bilinear")


class FastSHAP:
    """Surrogate and explainer, trained at construction; ``seconds`` says how long it took."""

    def __init__(
        self, model: nn.Module, stages: list[str], images: Tensor, steps: int, batch: int = 32,
        sets: int = 8, lr: float = 2e-4, seed: int = 0,
    ) -> None:
        start = time.perf_counter()
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.images, self.batch, self.sets, self.lr = images, batch, sets, lr
        self.players = (images.shape[2] // _TILE) * (images.shape[3] // _TILE)
        self.explainer = Explainer(model, stages, images[:2]).to(images.device)
        self.surrogate = self._train_surrogate(model, steps)
        self._train_explainer(steps)
        self.seconds = time.perf_counter() - start

    def _draw(self) -> Tensor:
        rows = torch.randint(len(self.images), (self.batch,), generator=self.generator)
        return self.images[rows]

    def _train_surrogate(self, model: nn.Module, steps: int) -> nn.Module:
        surrogate = copy.deepcopy(model).eval()
        optimizer = torch.optim.AdamW(surrogate.parameters(), self.lr / 2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr / 2, steps)
        for _ in tqdm(range(steps), desc="FastSHAP surrogate"):
            x = self._draw()
            kept = self._uniform_sets(len(x)).to(x.device)
            with torch.no_grad():
                target = F.softmax(model(x), 1)
            loss = F.cross_entropy(surrogate(masked(x, kept)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return surrogate.requires_grad_(False)

    def _uniform_sets(self, n: int) -> Tensor:
        size = torch.randint(self.players + 1, (n, 1), generator=self.generator)
        order = torch.rand(n, self.players, generator=self.generator).argsort(1).argsort(1)
        return order < size

    @torch.no_grad()
    def _value(self, images: Tensor, kept: Tensor) -> Tensor:
        return F.softmax(self.surrogate(masked(images, kept)), 1)

    def _train_explainer(self, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.explainer.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        for _ in tqdm(range(steps), desc="FastSHAP explainer"):
            x = self._draw()
            pairs = self.sets // 2
            sets = shapley_sets(pairs * len(x), self.players, self.generator).to(x.device)
            sets = sets.unflatten(0, (2, len(x), pairs)).transpose(0, 1).flatten(1, 2)
            repeated = x.repeat_interleave(self.sets, 0)
            worth = self._value(repeated, sets.flatten(0, 1)).unflatten(0, (len(x), self.sets))
            values, null = self.values(x)
            estimate = null[:, None] + torch.einsum("nsp,nkp->nsk", sets.float(), values)
            loss = self.players * (estimate - worth).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def values(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(n, classes, tiles)`` that add up; the worth ``(1, classes)`` of no tile."""
        raw = self.explainer(images).flatten(2)
        players = raw.shape[2]
        every = torch.ones(len(images), players, dtype=torch.bool, device=images.device)
        grand, null = self._value(images, every), self._value(images[:1], ~every[:1])
        gap = (grand - null) - raw.sum(2)
        return raw + gap[..., None] / players, null

    @torch.no_grad()
    def attribute(self, images: Tensor, targets: Tensor) -> Tensor:
        """Values of the target's tiles, resized to the images."""
        values, _ = self.values(images)
        h, w = images.shape[2:]
        chosen = values[torch.arange(len(images)), targets].view(-1, 1, h // _TILE, w // _TILE)
        fine = F.interpolate(chosen, (h, w), mode="bilinear", align_corners=False)
        return per_channel(fine[:, 0], images)


def methods(
    model: nn.Module, stages: list[str], images: Tensor, steps: int, seed: int
) -> dict[str, Method]:
    """FastSHAP, trained when it is first asked."""
    trained: list[FastSHAP] = []

    def explain(x: Tensor, t: Tensor) -> Tensor:
        if not trained:
            trained.append(FastSHAP(model, stages, images, steps, seed=seed))
        return trained[0].attribute(x, t)

    return {"FastSHAP": Method(explain)}
