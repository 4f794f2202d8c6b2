"""Photographs in one file: JPEGs behind one another with an index of labels and boxes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from captum_mi.datasets.view import View, box_mask

__all__ = ["IndexedPhotographs"]

_KEYS = ("blob", "off", "label", "split", "box", "names")


class IndexedPhotographs(Dataset[tuple[Tensor, int]]):
    """A split of an ``.npz`` file; items are ``(image, label)``.

    The file's arrays: ``blob`` (JPEG files one after another, uint8), ``off`` (n + 1 offsets into
    it), ``label``, ``split``, ``box`` (xmin, ymin, xmax, ymax in pixels: the first column and row
    of the box, and the first ones beyond it) and ``names`` of the classes (strings; arrays of
    Python objects are not read).

    Args:
        path: the file.
        split: number of the split, or several.
        view: how photographs become inputs.

    Attributes:
        labels: class of each photograph, a list of int.
        classes: names of all classes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such archive, an array is missing, arrays disagree, or the
            split is empty.
    """

    def __init__(
        self, path: str | Path, split: int | tuple[int, ...] = 0, view: View | None = None
    ) -> None:
        self.path, self.view = Path(path), view or View()
        arrays = _arrays(self.path)
        splits = (split,) if isinstance(split, int) else split
        self._rows = np.flatnonzero(np.isin(arrays["split"], splits))
        if not len(self._rows):
            present = sorted(set(arrays["split"].tolist()))
            raise ValueError(f"{path} has no photograph of split {split}; it has {present}")
        self._blob, self._off, self._box = arrays["blob"], arrays["off"], arrays["box"]
        self.labels: list[int] = arrays["label"][self._rows].astype(int).tolist()
        self.classes = [str(name) for name in arrays["names"]]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.view(self._image(i)), self.labels[i]

    def mask(self, i: int) -> Tensor:
        """Box of photograph ``i`` as a mask ``(size, size)``, as the view shows it."""
        image = self._image(i)
        return self.view.mask(box_mask(tuple(self._box[self._rows[i]]), *image.size))

    def _image(self, i: int) -> Image.Image:
        row = self._rows[i]
        return Image.open(io.BytesIO(self._blob[self._off[row] : self._off[row + 1]].tobytes()))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays, none of them pickled: reading a file must not run its code."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no .npz archive; expected one with {list(_KEYS)}")
    with np.load(path, allow_pickle=False) as file:
        missing = [key for key in _KEYS if key not in file]
        if missing:
            raise ValueError(f"{path} has no array {missing[0]!r}; expected {list(_KEYS)}")
        arrays = {key: file[key] for key in _KEYS}
    n = len(arrays["off"]) - 1
    for key in ("label", "split", "box"):
        if len(arrays[key]) != n:
            raise ValueError(
                f"{path} has {len(arrays[key])} rows of {key!r} for {n} photographs ('off' has "
                f"{n + 1} offsets)"
            )
    labels, classes = arrays["label"], len(arrays["names"])
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{path} has labels from {int(labels.min())} to {int(labels.max())} for {classes} "
            "names; expected 0 to one less than there are names"
        )
    return arrays
