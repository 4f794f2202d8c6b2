"""On what methods are compared, and by which figures of merit: one value per image of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from captum.metrics import infidelity
from photographs import TILE, Photographs
from torch import Tensor, nn

from captum_mi.datasets import Scenes, make_scenes
from captum_mi.metrics import (
    Curves,
    degradation,
    effective_heat_ratio,
    grid_pointing,
    insertion,
    inside_box,
    pointing,
    sensitivity_n,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_BATCH = {"cpu": 64, "cuda": 1024}  # larger ones are slower on a CPU
_SMALL = 0.5  # a box covers less than this share of its image
_SETS = (0.1, 0.3, 0.5)  # of the tiles, for sensitivity-n


def without_tf32() -> None:
    """Float32 on CUDA is what it is elsewhere, in whatever does not ask for less."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Mosaics:
    """2x2 mosaics ``(n, 3, 2H, 2W)``, the class of one cell each ``(n,)``, and that cell."""

    images: Tensor
    targets: Tensor
    cells: Tensor


def digit_scenes(n: int, split: Literal["train", "test"], seed: int) -> Scenes:
    """Scenes of one digit, on the device."""
    return Scenes(*(part.to(DEVICE) for part in make_scenes(n, split=split, seed=seed)))


@torch.no_grad()
def evaluation_set(model: nn.Module, photos: Photographs, n: int | None) -> Photographs:
    """The first n images that are classified correctly and whose box, if known, is small.

    Boxes that the view has cropped away are left out with their images.
    """
    predicted = torch.cat([model(part).argmax(1) for part in photos.images.split(200)])
    keep = predicted == photos.labels
    if photos.boxes is not None:
        share = photos.boxes.float().mean((1, 2))
        keep &= (share < _SMALL) & (share > 0)
    return photos[keep.nonzero()[:n, 0]]


@torch.no_grad()
def mosaics(
    model: nn.Module, photos: Photographs, n: int, confidence: float, seed: int
) -> Mosaics:
    """Mosaics of confidently and correctly classified images of four distinct classes."""
    if not n:
        return Mosaics(photos.images[:0], photos.labels[:0], photos.labels[:0])
    p = torch.cat([F.softmax(model(part), 1) for part in photos.images.split(200)])
    confident = (p.gather(1, photos.labels[:, None])[:, 0] >= confidence).nonzero()[:, 0]
    classes = len(photos.labels[confident].unique())
    if classes < 4:
        raise ValueError(
            f"mosaics need four classes; {classes} have an image of confidence {confidence}"
        )
    generator = torch.Generator().manual_seed(seed)
    grids, targets = [], []
    while len(grids) < n:
        order = torch.randperm(len(confident), generator=generator)[:4].to(confident.device)
        four = confident[order]
        if len(photos.labels[four].unique()) < 4:
            continue
        tiles = photos.images[four]
        rows = torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)
        targets.append(photos.labels[four[len(targets) % 4]])
        grids.append(torch.cat(rows, 1))
    cells = torch.arange(n, device=photos.labels.device) % 4
    return Mosaics(torch.stack(grids), torch.stack(targets), cells)


@dataclass
class Heat:
    """A method's attributions of the images, ``(n, 3, H, W)``, and of the mosaics."""

    images: Tensor
    mosaics: Tensor
    curves: Curves | None = None  # filled once: two figures of merit read them


class Evaluation:
    """Figures of merit of attributions on one set of images.

    Args:
        model: the network.
        photos: images that it classifies correctly.
        grids: mosaics of such images.
        tiles_per_step: of the degradation curves.
        seed: of random sets and perturbations.
        amp: ask the network about perturbed images in bfloat16.
    """

    def __init__(
        self, model: nn.Module, photos: Photographs, grids: Mosaics, tiles_per_step: int,
        seed: int, amp: bool = False,
    ) -> None:
        if any(side % TILE for side in photos.images.shape[2:]):
            raise ValueError(f"tiles of {TILE}x{TILE} pixels do not divide images of "
                             f"{tuple(photos.images.shape[2:])}; pass --size with a multiple")
        self.model, self.photos, self.grids = model, photos, grids
        self.tiles_per_step, self.seed, self.amp = tiles_per_step, seed, amp
        self.batch_size = _BATCH[photos.images.device.type]

    def measure(self, metric: str, heat: Heat) -> Tensor:
        """Values ``(n,)`` of one of :data:`METRICS`."""
        result: Tensor = METRICS[metric](self, heat)
        return result.float().cpu()

    def possible(self, of: Iterable[str] | None = None) -> list[str]:
        """Which of some metrics, by default all, these images allow."""
        lacking = set() if self.photos.boxes is not None else {"EHR", "box", "pointing"}
        if not len(self.grids.images):
            lacking.add("GridPG")
        return [name for name in of or METRICS if name not in lacking]

    def probability(self, images: Tensor, target: Tensor) -> Tensor:
        """Softmax probability of the target."""
        return F.softmax(self.logits(images), 1).gather(1, target[:, None])[:, 0]

    def logit(self, images: Tensor, target: Tensor) -> Tensor:
        """Logit of the target."""
        return self.logits(images).gather(1, target[:, None])[:, 0]

    def logits(self, images: Tensor) -> Tensor:
        """What the network says about perturbed images."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            result: Tensor = self.model(images)
        return result.float()

    def curves(self, heat: Heat) -> Curves:
        """MoRF and LeRF curves."""
        if heat.curves is None:
            heat.curves = degradation(
                self.probability, self.photos.images, heat.images.sum(1), self.photos.labels,
                TILE, batch_size=self.batch_size, tiles_per_step=self.tiles_per_step,
            )
        return heat.curves

    def sensitivity(self, heat: Heat) -> Tensor:
        """Correlation averaged over three sizes of the sets."""
        images = self.photos.images
        tiles = (images.shape[2] // TILE) * (images.shape[3] // TILE)
        return sensitivity_n(
            self.logit, images, heat.images.sum(1), self.photos.labels,
            [max(1, round(share * tiles)) for share in _SETS], TILE, samples=20,
            batch_size=self.batch_size, seed=self.seed,
        ).mean(1)

    def infidelity(self, heat: Heat) -> Tensor:
        """Captum's infidelity, normalised, for noise of standard deviation 0.1."""
        generator = torch.Generator().manual_seed(self.seed)

        def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
            noise = 0.1 * torch.randn(images.shape, generator=generator).to(images)
            return noise, images - noise

        parts = zip(*(x.split(50) for x in (self.photos.images, heat.images, self.photos.labels)))
        with torch.no_grad():
            return torch.cat([
                infidelity(self.model, perturb, x, a, target=t, n_perturb_samples=10,
                           normalize=True)
                for x, a, t in parts
            ])


def _in_boxes(metric: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Evaluation, Heat], Tensor]:
    def measure(evaluation: Evaluation, heat: Heat) -> Tensor:
        assert evaluation.photos.boxes is not None
        return metric(heat.images.sum(1), evaluation.photos.boxes)

    return measure


def _insertion(evaluation: Evaluation, heat: Heat) -> Tensor:
    photos = evaluation.photos
    return insertion(
        evaluation.probability, photos.images, heat.images.sum(1), photos.labels, TILE,
        batch_size=evaluation.batch_size, tiles_per_step=evaluation.tiles_per_step,
    )


def _deletion(evaluation: Evaluation, heat: Heat) -> Tensor:
    """Area under the MoRF curve: deletion to the mean colour."""
    curves = evaluation.curves(heat)
    return torch.trapezoid(curves.morf, curves.removed, dim=1)


METRICS: dict[str, Callable[[Evaluation, Heat], Tensor]] = {
    "degradation": lambda evaluation, heat: evaluation.curves(heat).area,
    "EHR": _in_boxes(effective_heat_ratio),
    "box": _in_boxes(inside_box),
    "pointing": _in_boxes(pointing),
    "GridPG": lambda evaluation, heat: grid_pointing(heat.mosaics.sum(1), evaluation.grids.cells),
    "insertion": _insertion,
    "deletion": _deletion,
    "sensitivity-n": Evaluation.sensitivity,
    "infidelity": Evaluation.infidelity,
}

#: Those that a method is chosen by.
LEADING = tuple(METRICS)[:5]


def seconds_per_image(call: Callable[..., object], *batch: Tensor) -> float:
    """Median of three timed calls on a batch after a warm-up, synchronised."""
    times = []
    for _ in range(4):
        start = now()
        call(*batch)
        times.append(now() - start)
    return sorted(times[1:])[1] / len(batch[0])


def now() -> float:
    """Time, once the device has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
