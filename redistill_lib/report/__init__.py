"""What executed notebooks leave for readers: outputs fit to commit, and a report over all of them. No torch."""

from redistill_lib.report.outputs import outputs_match_source, refresh_outputs, source_hash
from redistill_lib.report.page import write_index

__all__ = ["outputs_match_source", "refresh_outputs", "source_hash", "write_index"]
