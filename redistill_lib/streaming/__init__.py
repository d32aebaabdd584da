"""Running the first layers of a network row by row, so that of most of their maps only a few rows are held."""

from redistill_lib.streaming.stream import row_ends, stream_rows

__all__ = ["row_ends", "stream_rows"]
