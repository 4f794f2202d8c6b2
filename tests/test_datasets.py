"""Digit scenes: known truth, reproducible, with nothing shared between train and test."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_mi.datasets import DigitResNet, IndexedPhotographs, make_scenes
from captum_mi.datasets.digit_scenes import _scans


@pytest.mark.parametrize("objects", [1, 2])
def test_scenes(objects):
    scenes = make_scenes(24, objects, seed=3)
    assert scenes.images.shape == (24, 1, 48, 48)
    assert scenes.labels.shape == (24, objects)
    assert scenes.masks.shape == (24, objects, 48, 48)
    assert (scenes.masks.sum((2, 3)) > 30).all()
    inked = (scenes.images * scenes.masks.any(1, keepdim=True)).sum() / scenes.masks.sum()
    assert inked > scenes.images.mean() + 0.2
    again = make_scenes(24, objects, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(scenes, again))
    assert not torch.equal(scenes.images, make_scenes(24, objects, seed=4).images)


def test_two_digits_differ_and_do_not_overlap():
    scenes = make_scenes(64, 2, "test")
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    assert not (scenes.masks[:, 0] & scenes.masks[:, 1]).any()


def test_train_and_test_share_no_scan():
    (train, _), (test, _) = _scans("train"), _scans("test")
    assert len(train) + len(test) == 1797
    keys = {tuple(scan.flatten().tolist()) for scan in train}
    assert not any(tuple(scan.flatten().tolist()) in keys for scan in test)


def test_bad_arguments():
    with pytest.raises(ValueError, match="objects must be 1 or 2; got 3"):
        make_scenes(2, 3)
    with pytest.raises(ValueError, match="split must be one of .* got 'x'"):
        make_scenes(2, split="x")


def test_the_network_learns():
    scenes = make_scenes(256)
    network = DigitResNet((8, 8, 8, 8)).fit(scenes, 10, batch_size=32, progress=False)
    assert not network.training
    with torch.no_grad():
        right = network(scenes.images).argmax(1) == scenes.labels[:, 0]
    assert right.float().mean() > 0.5  # chance: 0.1


def test_training_on_fewer_scenes_than_a_batch():
    scenes = make_scenes(10, seed=0)
    model = DigitResNet()
    before = model.fc.weight.detach().clone()
    assert not model.fit(scenes, 0, progress=False).training
    assert torch.equal(model.fc.weight, before)
    model.fit(scenes, 1, progress=False)
    assert not torch.equal(model.fc.weight, before)


class Code:
    def __reduce__(self):
        return pytest.fail, ("code of a file ran",)


@pytest.mark.parametrize(("change", "message"), [
    ({"names": np.array([Code()], dtype=object)}, "allow_pickle=False"),
    ({"label": np.zeros(3, int)}, r"3 rows of 'label' for 2 photographs \('off' has 3 offsets\)"),
    ({"label": np.array([0, 7])}, "labels from 0 to 7 for 4 names"),
    ({"split": np.ones(2)}, r"no photograph of split 0; it has \[1.0\]"),
])
def test_an_index_that_is_broken(tmp_path, change, message):
    arrays = {
        "blob": np.zeros(9, np.uint8), "off": np.array([0, 4, 9]), "label": np.zeros(2, int),
        "split": np.zeros(2), "box": np.zeros((2, 4)), "names": np.array(list("abcd")),
    }
    np.savez(tmp_path / "index.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=message):
        IndexedPhotographs(tmp_path / "index.npz")
    np.save(tmp_path / "array.npy", arrays["blob"])
    with pytest.raises(ValueError, match="array.npy is no .npz archive"):
        IndexedPhotographs(tmp_path / "array.npy")
