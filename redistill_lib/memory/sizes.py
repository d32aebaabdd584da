"""`redistill_lib.sizes` by the name that trainings import, whose own code is part of what a run is."""

from redistill_lib.sizes import format_size, parse_size

__all__ = ["format_size", "parse_size"]
