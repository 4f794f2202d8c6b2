"""Caltech-UCSD Birds-200-2011: images, boxes, parts and segmentations (Wah et al., 2011)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from captum_mi.choices import check_choice
from captum_mi.datasets.view import View, box_mask, check_mode

__all__ = ["CUB200", "Bird", "CUBSplit"]

OnError = Literal["raise", "skip"]
CUBSplit = Literal["all", "train", "test", "base", "validation", "novel"]

_FOLDER = "CUB_200_2011"


@dataclass(frozen=True)
class Bird:
    """What is known of one image.

    Attributes:
        path: image file.
        label: class, from 0.
        box: xmin, ymin, xmax, ymax in pixels.
        parts: part name -> (x, y) in pixels, of the visible parts.
        segmentation: file of the segmentation, ``None`` if that is not there.
    """

    path: Path
    label: int
    box: tuple[float, float, float, float]
    parts: dict[str, tuple[float, float]]
    segmentation: Path | None


class CUB200(Dataset[tuple[Tensor, int]]):
    """CUB-200-2011 as its archive unpacks; items are ``(image, label)``.

    Source: Wah et al., 2011, https://www.vision.caltech.edu/datasets/cub_200_2011/. Splits by
    class follow Chen et al., 2019, https://arxiv.org/abs/1904.04232: of the 200 classes, every
    second is a base class (100), the others are validation and novel classes in turn (50, 50).

    Args:
        root: folder that holds ``images.txt``, or the folder ``CUB_200_2011`` that does.
        split: ``"train"`` and ``"test"`` as the archive lists them; ``"base"``,
            ``"validation"`` and ``"novel"`` by class; or ``"all"``.
        view: how photographs become inputs.
        on_error: ``"raise"`` at the first image with a missing index line, an unreadable file or
            a box that is not inside the image; ``"skip"`` leaves such images out and counts them
            in ``skipped``. Skipping decodes every file once, with a progress bar.

    Attributes:
        birds: what is known of each image.
        labels: class of each image, a list of int.
        classes: names of all classes.
        skipped: reason -> number of images that were left out for it.

    Raises:
        FileNotFoundError: if a file of the index is missing.
        ValueError: for a broken index line, image or box; names the file.
    """

    def __init__(
        self,
        root: str | Path,
        split: CUBSplit = "all",
        view: View | None = None,
        on_error: OnError = "raise",
    ) -> None:
        root = Path(root)
        self.root = root / _FOLDER if (root / _FOLDER).is_dir() else root
        self.view = view or View()
        check_choice("split", split, CUBSplit)
        check_choice("on_error", on_error, OnError)
        self.skipped: dict[str, int] = {}
        names = self._table("classes.txt", 2)
        self.classes = [fields[0] for _, fields in sorted(names.items())]
        self.birds = list(self._read(split, on_error == "skip"))
        if not self.birds:
            raise ValueError(f"{self.root}: no image of split {split!r} is left")
        self.labels = [bird.label for bird in self.birds]

    def __len__(self) -> int:
        return len(self.birds)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.view(_decoded(self.birds[i].path)), self.labels[i]

    def mask(self, i: int) -> Tensor:
        """Box of image ``i`` as a mask ``(size, size)``, as the view shows it."""
        bird = self.birds[i]
        with Image.open(bird.path) as image:
            return self.view.mask(box_mask(bird.box, *image.size))

    def segmentation(self, i: int) -> Tensor:
        """Pixels of bird ``i``, ``(size, size)``, boolean: those at least half of the people drew.

        Raises:
            FileNotFoundError: if the segmentations are not there (a separate archive).
        """
        bird = self.birds[i]
        if bird.segmentation is None:
            raise FileNotFoundError(
                f"no segmentation of {bird.path}: unpack segmentations.tgz into {self.root} or "
                "beside it"
            )
        drawn = np.asarray(_decoded(bird.segmentation).convert("L"))
        return self.view.mask(torch.from_numpy(drawn >= 128))

    # ------------------------------------------------------------------ reading the index

    def _read(self, split: CUBSplit, skip: bool) -> Iterator[Bird]:
        images = self._table("images.txt", 2)
        labels = self._table("image_class_labels.txt", 2)
        boxes = self._table("bounding_boxes.txt", 5)
        parts = self._parts()
        wanted = self._wanted(split, labels)
        bar = tqdm(images.items(), desc="CUB-200-2011", unit="image", disable=not skip)
        for key, (name,) in bar:
            try:
                if not wanted(key):
                    continue
                label = self._label(labels, key, name)
                box = _line(boxes, key, "bounding_boxes.txt", name)
                yield self._bird(name, label, box, parts.get(key, {}), decode=skip)
            except _BrokenImage as broken:
                if not skip:
                    raise ValueError(str(broken)) from broken.__cause__
                self.skipped[broken.reason] = self.skipped.get(broken.reason, 0) + 1

    def _wanted(
        self, split: CUBSplit, labels: dict[int, list[str]]
    ) -> Callable[[int], bool]:
        if split == "all":
            return lambda key: True
        if split in ("train", "test"):
            lines = self._table("train_test_split.txt", 2)
            name = "train_test_split.txt"
            return lambda key: (_line(lines, key, name, str(key))[0] == "1") == (split == "train")
        remainders = {"base": (0, 2), "validation": (1,), "novel": (3,)}

        def in_classes(key: int) -> bool:
            return self._label(labels, key, str(key)) % 4 in remainders[split]

        return in_classes

    def _label(self, labels: dict[int, list[str]], key: int, image: str) -> int:
        """Class of an image, from 0."""
        (number,) = _line(labels, key, "image_class_labels.txt", image)
        if not number.isdigit() or not 1 <= int(number) <= len(self.classes):
            raise _BrokenImage(
                "unknown class",
                f"{self.root / 'image_class_labels.txt'}: image {key} ({image}) has class "
                f"{number}; classes.txt has 1 to {len(self.classes)}",
            )
        return int(number) - 1

    def _bird(
        self, name: str, label: int, box: list[str], parts: dict[str, tuple[float, float]],
        decode: bool,
    ) -> Bird:
        path = self.root / "images" / name
        width, height = _size(path, decode)
        try:
            x, y, w, h = map(float, box)
        except ValueError as error:
            raise _BrokenImage(
                "broken box",
                f"{self.root / 'bounding_boxes.txt'}: the box of {name} is {' '.join(box)!r}; "
                "expected four numbers x, y, width, height",
            ) from error
        # Corners are whole pixels, so that a box may end one beyond the last.
        if x < 0 or y < 0 or w <= 0 or h <= 0 or x + w > width + 1 or y + h > height + 1:
            raise _BrokenImage(
                "box outside the image",
                f"{self.root / 'bounding_boxes.txt'}: the box x {x:g}, y {y:g}, width {w:g}, "
                f"height {h:g} does not lie inside {path} of {width}x{height} pixels",
            )
        return Bird(path, label, (x, y, x + w, y + h), parts, self._segmentation_of(name))

    def _segmentation_of(self, name: str) -> Path | None:
        for folder in (self.root, self.root.parent):
            path = (folder / "segmentations" / name).with_suffix(".png")
            if path.exists():
                return path
        return None

    def _parts(self) -> dict[int, dict[str, tuple[float, float]]]:
        if not (self.root / "parts" / "part_locs.txt").exists():
            return {}
        names = {key: " ".join(fields) for key, fields in self._table("parts/parts.txt").items()}
        found: dict[int, dict[str, tuple[float, float]]] = {}
        for number, fields in self._lines("parts/part_locs.txt", 5):
            image, part, x, y, visible = fields
            where = f"{self.root / 'parts/part_locs.txt'}:{number}"
            if not part.isdigit() or int(part) not in names:
                raise ValueError(f"{where}: part {part} is not in parts.txt")
            try:
                place = float(x), float(y)
            except ValueError as error:
                raise ValueError(f"{where}: expected numbers x, y; got {x!r}, {y!r}") from error
            if visible == "1":
                found.setdefault(int(image), {})[names[int(part)]] = place
        return found

    def _table(self, name: str, columns: int | None = None) -> dict[int, list[str]]:
        """Lines of an index file by their number."""
        return {int(fields[0]): fields[1:] for _, fields in self._lines(name, columns)}

    def _lines(self, name: str, columns: int | None) -> Iterator[tuple[int, list[str]]]:
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: root must be the folder that CUB_200_2011.tgz unpacks to"
            )
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if (columns is not None and len(fields) != columns) or not fields[0].isdigit():
                raise ValueError(
                    f"{path}:{number}: expected a number and {(columns or 2) - 1} more fields; "
                    f"got {line!r}"
                )
            yield number, fields


class _BrokenImage(Exception):
    """An image that cannot be used, with a reason to count it under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _line(table: dict[int, list[str]], key: int, name: str, image: str) -> list[str]:
    if key not in table:
        raise _BrokenImage(
            f"missing line in {name}", f"{name} has no line for image {key} ({image})"
        )
    return table[key]


def _size(path: Path, decode: bool) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
                check_mode(image)
            return image.size
    except (OSError, ValueError) as error:
        raise _BrokenImage("unreadable image", f"{path} cannot be read: {error}") from error


def _decoded(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
