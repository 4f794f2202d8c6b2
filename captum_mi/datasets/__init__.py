"""Data with boxes or masks. scikit-learn is imported only when scenes are made."""

from captum_mi.datasets.cub import CUB200, Bird
from captum_mi.datasets.digit_network import DigitResNet
from captum_mi.datasets.digit_scenes import Scenes, make_scenes
from captum_mi.datasets.indexed import IndexedPhotographs
from captum_mi.datasets.view import View

__all__ = [
    "CUB200", "Bird", "DigitResNet", "IndexedPhotographs", "Scenes", "View", "make_scenes",
]
