"""Where each buffer lies in one block of memory: packed as runtimes do it, and tighter."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

TRIES = 400  # orders at most that the tight packer looks at beyond the usual ones
PLACED = 200_000  # blocks at most that it places for that, of networks with thousands, as those row by row have


class Block(NamedTuple):
    """Memory that is needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


Packer = Callable[[Sequence[Block]], list[int]]  # the offset of each block


def alive(blocks: Iterable[tuple[int, int, int]], steps: int) -> list[int]:
    """The bytes that are needed at each step."""
    changes = [0] * (steps + 1)
    for nbytes, first, last in blocks:
        changes[first] += nbytes
        changes[last + 1] -= nbytes
    return list(accumulate(changes[:-1]))


def live(blocks: Sequence[Block]) -> int:
    """The most bytes that are needed at once: no packing takes less."""
    return max(alive(blocks, max((block.last + 1 for block in blocks), default=0)), default=0)


def height(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    """Bytes of the arena in which the blocks lie."""
    return max((offset + block.nbytes for block, offset in zip(blocks, offsets, strict=True)), default=0)


def first_fit(blocks: Sequence[Block], order: Sequence[int] = ()) -> list[int]:
    """The largest block first, each into the lowest gap between those that are there at the same time.

    This is the greedy planner of LiteRT Micro. `order`: another order of the blocks.

    >>> first_fit([Block(4, 0, 1), Block(2, 1, 2), Block(4, 2, 3)])
    [0, 4, 0]
    """
    offsets = [0] * len(blocks)
    there: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by step: offset and end of what is placed
    for index in order or _largest(blocks):
        nbytes, first, last = blocks[index]
        at, steps = 0, range(first, last + 1)
        for offset, end in sorted({lies for step in steps for lies in there[step]}):
            if offset - at >= nbytes:
                break
            at = max(at, end)
        offsets[index] = at
        for step in steps:
            there[step].append((at, at + nbytes))
    return offsets


def shared_objects(blocks: Sequence[Block]) -> list[int]:
    """The largest block first, each into the first area that is free while it lives, or has room above what is not.

    An area is as large as the block that opened it and lies behind the last one: the greedy planner of ExecuTorch,
    which takes the later of two equal blocks first.
    """
    areas: list[tuple[int, int, list[int]]] = []  # offset, size, blocks in it
    offsets = [0] * len(blocks)

    def room(area: tuple[int, int, list[int]], block: Block) -> int:
        """The offset behind what is there at the same time."""
        together = [i for i in area[2] if blocks[i].first <= block.last and blocks[i].last >= block.first]
        return max((offsets[i] + blocks[i].nbytes for i in together), default=area[0])

    for index in sorted(range(len(blocks)), key=lambda index: (-blocks[index].nbytes, -index)):
        block = blocks[index]
        found = next((area for area in areas if room(area, block) == area[0]), None)
        found = found or next((a for a in areas if room(a, block) + block.nbytes <= a[0] + a[1]), None)
        if found is None:
            found = sum(size for _, size, _ in areas), block.nbytes, []
            areas.append(found)
        offsets[index] = room(found, block)
        found[2].append(index)
    return offsets


class _Packing(NamedTuple):
    height: int
    order: list[int]
    offsets: list[int]


def pack_tightly(blocks: Sequence[Block]) -> list[int]:
    """The lowest of several packings: the largest first, then with blocks at the top moved ahead again and again.

    In the order of their offsets, first fit places the blocks of a best packing no higher than they are in it: some
    order gives the best one, and orders are all that is tried. None is better where it reaches `live`.

    >>> blocks = [Block(2, 0, 1), Block(1, 1, 2), Block(2, 2, 3), Block(1, 3, 4), Block(3, 4, 5)]
    >>> height(blocks, pack_tightly(blocks)) == live(blocks) == 4
    True
    """

    def pack(order: list[int]) -> _Packing:
        offsets = first_fit(blocks, order)
        return _Packing(height(blocks, offsets), order, offsets)

    least, choose = live(blocks), random.Random(0)
    best = now = pack(_largest(blocks))
    for _ in range(min(TRIES, PLACED // max(1, len(blocks)))):
        if best.height == least:
            break
        found = pack(_moved(blocks, now, choose))
        if found.height <= now.height:  # sideways too: many orders give the same height
            now = found
        if now.height < best.height:
            best = now
    return best.offsets


def _moved(blocks: Sequence[Block], packing: _Packing, choose: random.Random) -> list[int]:
    """The order with a block at the top, or one of those in its way, further ahead."""
    order, offsets = packing.order, packing.offsets
    mover = choose.choice([i for i, block in enumerate(blocks) if offsets[i] + block.nbytes == packing.height])
    if choose.random() < 0.5:
        first, last = blocks[mover][1:]
        mover = choose.choice([i for i, b in enumerate(blocks) if b.first <= last and b.last >= first])
    place = order.index(mover)
    changed = [i for i in order if i != mover]
    changed.insert(choose.randrange(place) if place else choose.randrange(len(order)), mover)
    return changed


def _largest(blocks: Sequence[Block]) -> list[int]:
    return sorted(range(len(blocks)), key=lambda index: -blocks[index].nbytes)


PACKERS: dict[str, Packer] = {"first fit": first_fit, "shared objects": shared_objects, "tight": pack_tightly}
