"""Following a network's forward pass: reading its maps, and where its resolution changes."""

from redistill_lib.network.answer import answer, asking
from redistill_lib.network.hooks import (
    MapRef,
    check_float,
    check_followable,
    dtype_of,
    evaluating,
    find_layer,
    locate,
    output_of,
    reading,
    record_maps,
    run_and_read,
)
from redistill_lib.network.resolution import Place, Resize, Resolutions, find_resolutions, map_shapes
from redistill_lib.network.steps import Step

__all__ = [
    "MapRef",
    "Place",
    "Resize",
    "Resolutions",
    "Step",
    "answer",
    "asking",
    "check_float",
    "check_followable",
    "dtype_of",
    "evaluating",
    "find_layer",
    "find_resolutions",
    "locate",
    "map_shapes",
    "output_of",
    "reading",
    "record_maps",
    "run_and_read",
]
