"""Following a network's forward pass: reading its maps, and where its resolution changes."""

from redistill_lib.network.hooks import (  # noqa: F401
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
from redistill_lib.network.resolution import Resize, find_resizes, map_shapes  # noqa: F401
