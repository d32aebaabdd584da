"""Bytes as people write them."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any


def parse_size(size: int | str) -> int:
    """Bytes from `262144`, `"256KB"` or `"1.5 MiB"`. KB is 1024 bytes, as in the data sheets of microcontrollers.

    A number is bytes; text without a unit is refused below 1024, where KB were meant more likely.

    >>> parse_size("256KB"), parse_size("0.5 MiB")
    (262144, 524288)
    """
    amount: Any = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+|\d+\.\d+(?=\s*[kmg]))\s*(?:([kmg])i?)?b?\s*", size, re.IGNORECASE)
        amount = match and int(float(match[1]) * 1024 ** " kmg".index((match[2] or " ").lower()))
    if not isinstance(amount, Integral) or isinstance(amount, bool) or amount <= 0:
        raise ValueError(f'{size!r} is not an amount of memory: write bytes above 0, or "256KB", or "1.5 MiB".')
    if isinstance(size, str) and size.strip().isdecimal() and amount < 1024:
        raise ValueError(f'{size!r} has no unit: write "{size.strip()}KB", or "{size.strip()}B" if you mean bytes.')
    return int(amount)


def format_size(nbytes: float) -> str:
    """KiB below one MiB, MiB above, with three digits that count.

    >>> format_size(1505280), format_size(4014080), format_size(512), format_size(46812160)
    ('1.44 MiB', '3.83 MiB', '0.5 KiB', '44.6 MiB')
    """
    value, unit = (nbytes / 2**20, "MiB") if nbytes >= 2**20 else (nbytes / 2**10, "KiB")
    if value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:.{1 if value >= 10 or unit == 'KiB' else 2}f} {unit}"


def short_size(nbytes: float) -> str:
    """`format_size` of what is a round amount as a rule, such as a budget: no zeros after it.

    >>> short_size(524288), short_size(1.5 * 2**20), short_size(4608)
    ('512 KiB', '1.5 MiB', '4.5 KiB')
    """
    return f"{nbytes / 2**20:.3g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.4g} KiB"


def millions(count: float) -> str:
    """Multiply-adds and the like.

    >>> millions(1_724_400_000), millions(59_120_000)
    ('1,724 M', '59.1 M')
    """
    return f"{count / 1e6:,.0f} M" if count >= 99.95e6 else f"{count / 1e6:.3g} M"


def ratio(reference: float, value: float) -> str:
    """How much less, or more, than a reference.

    >>> ratio(10, 4), ratio(100, 99.8)
    ('2.5× less than', 'about as much as')
    """
    times = max(reference, value) / min(reference, value)
    if times < 1.005:
        return "about as much as"
    return f"{times:.{2 if times < 1.995 else 1}f}× {'less' if value < reference else 'more'} than"
