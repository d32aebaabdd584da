"""Following a network's forward pass."""

from redistill_lib.network.hooks import Place, check_float, evaluating, feature_maps, find_layer, tapping
from redistill_lib.network.resolution import Resize, find_resizes, map_shapes

__all__ = [
    "Place",
    "Resize",
    "check_float",
    "evaluating",
    "feature_maps",
    "find_layer",
    "find_resizes",
    "map_shapes",
    "tapping",
]
