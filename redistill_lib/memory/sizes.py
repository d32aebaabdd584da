"""Bytes as people write them."""

from __future__ import annotations

import re
from numbers import Integral

_UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 2**10, "kib": 2**10, "m": 2**20, "mb": 2**20, "mib": 2**20, "g": 2**30,
          "gb": 2**30, "gib": 2**30}  # fmt: skip


def parse_size(size: int | str) -> int:
    """Bytes from `262144`, `"256KB"` or `"1.5 MiB"`. KB is 1024 bytes, as in the data sheets of microcontrollers.

    >>> parse_size("256KB"), parse_size("0.5 MiB")
    (262144, 524288)
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size)
        fraction_of_a_byte = match is not None and "." in match[1] and not match[2]
        if match is None or match[2].lower() not in _UNITS or fraction_of_a_byte:
            raise ValueError(f'{size!r} is not an amount of memory: write bytes, or "256KB", or "1.5 MiB".')
        size = int(float(match[1]) * _UNITS[match[2].lower()])
    if isinstance(size, bool) or not isinstance(size, Integral) or size <= 0:
        raise ValueError(f'{size!r} is not an amount of memory: write bytes above 0, or "256KB", or "1.5 MiB".')
    return int(size)


def format_size(nbytes: float) -> str:
    """KiB below one MiB, MiB above, with three digits that count.

    >>> format_size(1505280), format_size(4014080), format_size(512), format_size(46812160)
    ('1.44 MiB', '3.83 MiB', '0.5 KiB', '44.6 MiB')
    """
    value, unit = (nbytes / 2**20, "MiB") if nbytes >= 2**20 else (nbytes / 2**10, "KiB")
    if value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:.{1 if value >= 10 or unit == 'KiB' else 2}f} {unit}"
