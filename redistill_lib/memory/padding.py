"""How a padding is made that TensorFlow's SAME cannot express, without a padded copy of the whole map.

PyTorch pads both ends alike. SAME pads what the last window needs, the smaller half of it in front: of the five
pixels that a 7×7 kernel of stride 2 needs on an even side, two where PyTorch has three. A kernel with zeros at its
end needs more, which moves that border, and what is multiplied by zero changes nothing. Max pooling has none such.
"""

from __future__ import annotations

MOST_PARTS = 10  # as LiteRT Micro joins ten maps at most


def kernel_growth(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int | None:
    """Rows of zeros at the kernel's end with which SAME pads a side as PyTorch does; None where no number does.

    A square kernel then takes (1 + growth / kernel)² as many multiply-adds: 16/9 for 3×3 of stride 2, (8/7)² for 7×7
    of stride 2, (14/7)² = 4 for 7×7 of stride 8.

    >>> kernel_growth(224, 3, 2, 1), kernel_growth(224, 7, 2, 3), kernel_growth(224, 7, 8, 3)
    (1, 1, 7)
    >>> kernel_growth(9, 3, 1, 0) is None  # fewer windows than SAME has
    True
    """
    reach = dilation * (kernel - 1) + 1
    more = size + 2 * padding - reach - (-(-size // stride) - 1) * stride
    return more // dilation if 0 <= more < stride and more % dilation == 0 else None


def pool_parts(channels: int, size: int, padded: int, made: int) -> list[int]:
    """Channels that are pooled at a time, so that copies and padded copies of parts add little to map and result.

    `size`, `padded` and `made` are the pixels of a channel: of the map, padded, and pooled. A part is copied out of
    the map, padded and pooled. What is pooled stays, so the first part may be larger than the last, while their sum
    stays below a bound: the least that ten parts can keep.

    >>> pool_parts(64, 112 * 112, 114 * 114, 56 * 56), pool_parts(4, 8 * 8, 10 * 10, 4 * 4)
    ([11, 9, 8, 7, 7, 6, 5, 4, 4, 3], [1, 1, 1, 1])
    """
    low, high = 0, channels * (size + padded + made)  # bounds: not enough, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if sum(_within(middle, channels, size, padded, made)) == channels else (middle, high)
        )
    return _within(high, channels, size, padded, made)


def _within(bound: int, channels: int, size: int, padded: int, made: int) -> list[int]:
    """The largest parts that stay below a bound; not all channels where it is too low for as many as there may be."""
    parts: list[int] = []
    while len(parts) < MOST_PARTS and (left := channels - sum(parts)):
        free = bound - sum(parts) * made
        parts.append(max(0, min(left, free // (size + padded), free // (padded + made))))
    return parts
