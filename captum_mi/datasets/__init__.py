"""Data with known masks. scikit-learn is imported only when scenes are made."""

from captum_mi.datasets.digit_network import DigitResNet
from captum_mi.datasets.digit_scenes import Scenes, make_scenes

__all__ = ["DigitResNet", "Scenes", "make_scenes"]
