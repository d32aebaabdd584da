"""Running the first layers of a network row by row, so that of most of their maps only a few rows are held."""

from redistill_lib.streaming.stream import stream_rows

__all__ = ["stream_rows"]
