"""CUB-200-2011 as its archive unpacks, whole and broken."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from captum_mi.datasets import CUB200, View

CLASSES, EACH = 8, 3
WIDTH, HEIGHT = 40, 30
BOX = (10.0, 5.0, 20.0, 15.0)  # x, y, width, height


@pytest.fixture
def root(tmp_path):
    """Eight classes of three birds, a white box on black each."""
    folder = tmp_path / "CUB_200_2011"
    index = {name: [] for name in ("images", "image_class_labels", "train_test_split",
                                   "bounding_boxes", "classes", "part_locs")}
    key = 0
    for c in range(CLASSES):
        name = f"{c + 1:03d}.Bird_{c}"
        index["classes"].append(f"{c + 1} {name}")
        for i in range(EACH):
            key += 1
            file = f"{name}/Bird_{i:04d}_{key}.jpg"
            for kind in ("images", "segmentations"):
                picture = Image.new("RGB", (WIDTH, HEIGHT))
                corners = (BOX[0], BOX[1], BOX[0] + BOX[2] - 1, BOX[1] + BOX[3] - 1)
                ImageDraw.Draw(picture).rectangle(corners, fill="white")
                path = folder / kind / file
                if kind == "segmentations":
                    path = (tmp_path / kind / file).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            index["images"].append(f"{key} {file}")
            index["image_class_labels"].append(f"{key} {c + 1}")
            index["train_test_split"].append(f"{key} {int(i > 0)}")
            index["bounding_boxes"].append(f"{key} {' '.join(map(str, BOX))}")
            index["part_locs"].append(f"{key} 1 12.0 7.0 1")
            index["part_locs"].append(f"{key} 2 0.0 0.0 0")
    (folder / "parts").mkdir()
    (folder / "parts" / "parts.txt").write_text("1 left eye\n2 tail\n")
    (folder / "parts" / "part_locs.txt").write_text("\n".join(index.pop("part_locs")) + "\n")
    for name, lines in index.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_bird_with_its_box_parts_and_segmentation(root):
    birds = CUB200(root.parent, view=View(30, mean=(0, 0, 0), std=(1, 1, 1)))
    assert len(birds) == CLASSES * EACH
    image, label = birds[4]
    assert image.shape == (3, 30, 30)
    assert label == 1
    assert birds.classes[1] == "002.Bird_1"
    assert birds.birds[4].box == (10, 5, 30, 20)
    assert birds.birds[4].parts == {"left eye": (12, 7)}
    # 40x30 seen as the middle 30x30: x moves by 5.
    expected = torch.zeros(30, 30, dtype=torch.bool)
    expected[5:20, 5:25] = True
    assert torch.equal(birds.mask(4), expected)
    assert torch.equal(birds.segmentation(4), expected)
    assert (image.mean(0) > 0.5)[expected].float().mean() > 0.99


def test_splits_by_class_and_by_image(root):
    sizes = {split: len(CUB200(root, split)) for split in ("all", "train", "test")}
    assert sizes == {"all": 24, "train": 16, "test": 8}
    classes = {split: sorted(set(CUB200(root, split).labels))
               for split in ("base", "validation", "novel")}
    assert classes == {"base": [0, 2, 4, 6], "validation": [1, 5], "novel": [3, 7]}
    with pytest.raises(ValueError, match="split must be .* got 'dev'"):
        CUB200(root, "dev")


@pytest.mark.parametrize(("file", "old", "new", "message", "reason"), [
    ("image_class_labels.txt", "\n5 2\n", "\n",
     r"image_class_labels.txt has no line for image 5 \(002.Bird_1/Bird_0001_5.jpg\)",
     "missing line in image_class_labels.txt"),
    ("bounding_boxes.txt", "\n5 10.0 5.0 20.0 15.0\n", "\n",
     "bounding_boxes.txt has no line for image 5", "missing line in bounding_boxes.txt"),
    ("bounding_boxes.txt", "\n5 10.0 5.0 20.0 15.0\n", "\n5 30.0 5.0 20.0 15.0\n",
     r"the box x 30, .* does not lie inside .*Bird_0001_5.jpg of 40x30 pixels",
     "box outside the image"),
    ("bounding_boxes.txt", "\n5 10.0 5.0 20.0 15.0\n", "\n5 10.0 5.0 wide 15.0\n",
     r"the box of .*Bird_0001_5.jpg is '10.0 5.0 wide 15.0'; expected four numbers",
     "broken box"),
    ("image_class_labels.txt", "\n5 2\n", "\n5 0\n",
     r"image 5 \(002.Bird_1/Bird_0001_5.jpg\) has class 0; classes.txt has 1 to 8",
     "unknown class"),
])
def test_broken_index(root, file, old, new, message, reason):
    edit(root / file, old, new)
    with pytest.raises(ValueError, match=message):
        CUB200(root)
    birds = CUB200(root, on_error="skip")
    assert birds.skipped == {reason: 1}
    assert len(birds) == CLASSES * EACH - 1


def test_a_part_that_lies_nowhere(root):
    edit(root / "parts" / "part_locs.txt", "\n5 1 12.0 7.0 1\n", "\n5 1 12.0 ? 1\n")
    with pytest.raises(ValueError, match=r"part_locs.txt:9: expected numbers x, y; got '12.0'"):
        CUB200(root)


def test_an_image_missing_from_the_index_of_images_is_not_there(root):
    edit(root / "images.txt", "\n5 002.Bird_1/Bird_0001_5.jpg\n", "\n")
    assert len(CUB200(root)) == CLASSES * EACH - 1


def test_unreadable_images(root):
    path = root / "images" / "002.Bird_1" / "Bird_0001_5.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # the header is fine, the pixels end early
    with pytest.raises(ValueError, match=r"Bird_0001_5.jpg cannot be read"):
        CUB200(root)[4]
    assert CUB200(root, on_error="skip").skipped == {"unreadable image": 1}
    for damage in (lambda: path.write_bytes(b"no image"), path.unlink):
        damage()
        with pytest.raises(ValueError, match=r"Bird_0001_5.jpg cannot be read"):
            CUB200(root)
        assert CUB200(root, on_error="skip").skipped == {"unreadable image": 1}


def test_files_and_lines_that_are_not_as_they_should_be(root):
    edit(root / "bounding_boxes.txt", "\n5 10.0 5.0 20.0 15.0\n", "\n5 10.0 5.0\n")
    with pytest.raises(ValueError, match=r"bounding_boxes.txt:5: expected a number and 4 more"):
        CUB200(root)
    (root / "bounding_boxes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="bounding_boxes.txt is missing: root must be"):
        CUB200(root)
    with pytest.raises(ValueError, match="on_error must be one of .* got 'ignore'"):
        CUB200(root, on_error="ignore")


def test_without_parts_and_segmentations(root):
    (root / "parts" / "part_locs.txt").unlink()
    for path in (root.parent / "segmentations").rglob("*.png"):
        path.unlink()
    birds = CUB200(root)
    assert birds.birds[0].parts == {}
    with pytest.raises(FileNotFoundError, match=r"unpack segmentations.tgz"):
        birds.segmentation(0)
