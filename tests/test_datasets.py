"""Digit scenes: known truth, reproducible, with nothing shared between train and test."""

from __future__ import annotations

import pytest
import torch

from captum_mi.datasets import DigitResNet, make_scenes
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
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'x'"):
        make_scenes(2, split="x")


def test_the_network_learns(capsys):
    scenes = make_scenes(256)
    network = DigitResNet((8, 8, 8, 8)).fit(scenes, 1, batch_size=32, progress=False)
    assert not network.training
    assert network(scenes.images[:3]).shape == (3, 10)


def test_training_on_fewer_scenes_than_a_batch():
    scenes = make_scenes(10, seed=0)
    model = DigitResNet()
    before = model.fc.weight.detach().clone()
    assert not model.fit(scenes, 0, progress=False).training
    assert torch.equal(model.fc.weight, before)
    model.fit(scenes, 1, progress=False)
    assert not torch.equal(model.fc.weight, before)
