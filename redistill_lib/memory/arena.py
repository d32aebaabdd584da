"""Where each buffer lies in one block of memory: packed as runtimes do it, and tighter."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

TRIES = 400  # orders at most that the tight packer looks at beyond the usual ones


class Block(NamedTuple):
    """Memory that is needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


Packer = Callable[[Sequence[Block]], list[int]]  # the offset of each block


def live(blocks: Iterable[Block]) -> int:
    """The most bytes that are needed at once: no packing takes less."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.first] = changes.get(block.first, 0) + block.nbytes
        changes[block.last + 1] = changes.get(block.last + 1, 0) - block.nbytes
    peak = now = 0
    for step in sorted(changes):
        peak = max(peak, now := now + changes[step])
    return peak


def height(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    """Bytes of the arena in which the blocks lie."""
    return max((offset + block.nbytes for block, offset in zip(blocks, offsets, strict=True)), default=0)


def first_fit(blocks: Sequence[Block], order: Iterable[int] | None = None) -> list[int]:
    """The largest block first, each into the lowest gap between those that are there at the same time.

    This is the greedy planner of LiteRT Micro. `order`: another order of the blocks.

    >>> first_fit([Block(4, 0, 1), Block(2, 1, 2), Block(4, 2, 3)])
    [0, 4, 0]
    """
    offsets = [0] * len(blocks)
    there: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by step: offset and end of what is placed
    for index in _largest(blocks) if order is None else order:
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

    for index in _largest(blocks, later=True):
        block = blocks[index]
        found = next((area for area in areas if room(area, block) == area[0]), None)
        found = found or next((a for a in areas if room(a, block) + block.nbytes <= a[0] + a[1]), None)
        if found is None:
            found = sum(size for _, size, _ in areas), block.nbytes, []
            areas.append(found)
        offsets[index] = room(found, block)
        found[2].append(index)
    return offsets


def pack_tightly(blocks: Sequence[Block]) -> list[int]:
    """The lowest of several packings, improved by moving blocks at the top ahead; best where it reaches `live`.

    In the order of their offsets, first fit places the blocks of a best packing no higher than they are in it: some
    order gives the best one, and orders are all that is tried.

    >>> blocks = [Block(2, 0, 1), Block(1, 1, 2), Block(2, 2, 3), Block(1, 3, 4), Block(3, 4, 5)]
    >>> height(blocks, pack_tightly(blocks)) == live(blocks) == 4
    True
    """
    least, indices = live(blocks), range(len(blocks))
    keys: tuple[Callable[[Block], tuple[int, ...]], ...] = (
        lambda b: (-b.nbytes, b.first),
        lambda b: (-b.nbytes, -b.last),
        lambda b: (b.first - b.last, -b.nbytes),
        lambda b: (-b.nbytes * (b.last - b.first + 1),),
        lambda b: (b.first, -b.nbytes),
        lambda b: (-b.last, -b.nbytes),
    )
    best: tuple[int, list[int], list[int]] | None = None  # height, order, offsets
    for key in keys:
        order = sorted(indices, key=lambda index, key=key: key(blocks[index]))  # type: ignore[misc]
        offsets = first_fit(blocks, order)
        if best is None or height(blocks, offsets) < best[0]:
            best = height(blocks, offsets), order, offsets
        if best[0] == least:
            return best[2]
    assert best is not None
    return _improved(blocks, best, least)


def _improved(blocks: Sequence[Block], best: tuple[int, list[int], list[int]], least: int) -> list[int]:
    choose, (top, order, offsets) = random.Random(0), best
    lowest = best
    for _ in range(TRIES):
        high = [i for i, block in enumerate(blocks) if offsets[i] + block.nbytes == top]
        mover = choose.choice(high)
        if choose.random() < 0.5:  # or one of those in its way
            first, last = blocks[mover][1:]
            mover = choose.choice([i for i, b in enumerate(blocks) if b.first <= last and b.last >= first])
        place = order.index(mover)
        changed = [i for i in order if i != mover]
        changed.insert(choose.randrange(place) if place else choose.randrange(len(order)), mover)
        packed = first_fit(blocks, changed)
        reached = height(blocks, packed)
        if reached <= top:  # sideways too: many orders give the same height
            top, order, offsets = reached, changed, packed
        if reached < lowest[0]:
            lowest = reached, changed, packed
        if reached == least:
            break
    return lowest[2]


def _largest(blocks: Sequence[Block], later: bool = False) -> list[int]:
    """Indices from the largest block to the smallest, of equal ones the earlier, or the later, first."""
    sign = -1 if later else 1
    return sorted(range(len(blocks)), key=lambda index: (-blocks[index].nbytes, sign * index))


PACKERS: dict[str, Packer] = {"first fit": first_fit, "shared objects": shared_objects, "tight": pack_tightly}
