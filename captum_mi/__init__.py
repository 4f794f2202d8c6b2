"""Information-bottleneck attribution for Captum: where the information is, and how much of it."""

from captum_mi.attribution import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.fitting.history import History
from captum_mi.maps.information import Estimate
from captum_mi.model.batches import Batch
from captum_mi.version import __version__

__all__ = [
    "Batch",
    "Estimate",
    "History",
    "InfoBottleneckAttribution",
    "LayerInfoBottleneckAttribution",
    "__version__",
]
