"""Information-bottleneck attribution for Captum: where the information is, and how much of it."""

from captum_mi.attribution import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.batches import Batch
from captum_mi.dataset import Estimate
from captum_mi.history import History
from captum_mi.version import __version__

__all__ = [
    "Batch",
    "Estimate",
    "History",
    "InfoBottleneckAttribution",
    "LayerInfoBottleneckAttribution",
    "__version__",
]
