"""Where the names of points stand so that none lies on another, in pixels from the plot's lower left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top


_MANY = 14


class Place(NamedTuple):
    """Where a name stands beside its point: how far, which of its ends is there, and whether a line leads to it."""

    right: float
    above: float
    anchor: str  # left, right or center
    led: bool = False


_NEAR = Place(14, 0, "left"), Place(-14, 0, "right"), Place(0, 19, "center"), Place(0, -19, "center")
_FAR = tuple(
    Place(sign * away, up, anchor, True)
    for away in (30, 60, 100)
    for up in (34, -34, 62, -62, 96, -96)
    for sign, anchor in ((1, "left"), (-1, "right"))
)


def name_places(points: Sequence[Point], lengths: Sequence[float], width: float, height: float) -> list[Place | None]:
    """For each point, where its name stands: close by, else at the end of a short line, else nowhere.

    `lengths` are those of the names, `width` and `height` the plot's. No name lies on a point or another name; the
    first points choose first. Of many points none has a line, as they would cross.

    >>> [place.anchor for place in name_places([(50, 50), (70, 50)], [30, 30], 200, 100)]
    ['right', 'left']
    """
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    found: list[Place | None] = []
    for (x, y), length in zip(points, lengths, strict=True):
        for place in (*_NEAR, *(_FAR if len(points) <= _MANY else ())):
            left = x + place.right - {"left": 0.0, "right": length, "center": length / 2}[place.anchor]
            box = (left, y + place.above - 8, left + length, y + place.above + 8)
            if box[0] > 2 and box[2] < width - 2 and box[1] > 2 and box[3] < height and not _hits(box, taken):
                taken.append(box)
                found.append(place)
                break
        else:
            found.append(None)
    return found


def _hits(box: Box, others: Iterable[Box]) -> bool:
    return any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in others)
