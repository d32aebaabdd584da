"""Peak memory of a forward pass: traced, scheduled under a convention, measured and bounded."""

from redistill_lib.memory.bounds import Bounds, memory_bounds
from redistill_lib.memory.measure import Measurement, measure_memory
from redistill_lib.memory.profile import Profile, Row, profile_memory
from redistill_lib.memory.runtime import RUNTIMES, Runtime
from redistill_lib.sizes import format_size, parse_size

__all__ = [
    "RUNTIMES",
    "Bounds",
    "Measurement",
    "Profile",
    "Row",
    "Runtime",
    "format_size",
    "measure_memory",
    "memory_bounds",
    "parse_size",
    "profile_memory",
]
