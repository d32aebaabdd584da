"""How little memory a network could do with: the best order, the largest operator, streaming by rows."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from redistill_lib.memory.profile import Dtype, storage_size
from redistill_lib.memory.runtime import FUSED
from redistill_lib.memory.schedule import Schedule, StorageSize, make_schedule, may_overwrite
from redistill_lib.memory.trace import Trace, trace

STATES = 2_000  # of the search for the best order: about half a second
SMALL = 1 / 200  # of the peak: tensors below are left out where the search would take too long


@dataclass(frozen=True)
class Bounds:
    """What other ways of running the same network would need, in bytes, beside the ``fused`` peak."""

    peak_bytes: int  # in the order in which the program runs it
    order_bytes: int  # the least that any order needs without computing anything twice
    order_exact: bool  # False: no order needs less, but perhaps every one needs more
    op_bytes: int  # the largest operator's inputs and outputs: needed whatever else is freed
    op_name: str
    streaming_bytes: int  # the leading chain of convolutions and pools run row by row
    streaming_name: str  # the last layer of that chain; empty where streaming gains nothing
    shortcut_name: str  # a layer behind it ends the chain, as a shortcut keeps its map; empty where none does
    without_shortcut_bytes: int  # the chain run row by row if that map had no shortcut
    in_place_depthwise_bytes: int  # depthwise convolutions over their own input


def memory_bounds(
    model: nn.Module, *inputs: Any, dtype: Dtype = None, kwargs: Mapping[str, Any] | None = None
) -> Bounds:
    """Bounds on the peak of a forward pass, all under the ``fused`` convention.

    Row streaming holds, of each map inside the leading chain, only the rows that the next kernel spans (RNNPool,
    arXiv 2002.11921, Proposition 1). In-place depthwise convolutions: MCUNetV2, arXiv 2110.15352.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, padding=1))
    >>> bounds = memory_bounds(net, torch.zeros(1, 3, 16, 16))
    >>> bounds.order_bytes == bounds.peak_bytes, bounds.streaming_bytes == 4 * (3 * 16 * 16 + 8 * 3 * 16 + 4 * 8 * 8)
    (True, True)
    """
    _, size = storage_size(dtype)
    passed = trace(model, *inputs, kwargs=kwargs, fast_attention=False)
    schedule = make_schedule(passed, size, FUSED)
    in_place = make_schedule(passed, size, replace(FUSED, in_place_depthwise=True))
    peak = max(schedule.live_bytes())
    nodes, values = _graph(passed, size)
    # What must be there while a node runs, were it the last one to need its inputs.
    needs = [sum(values[i].nbytes for i in node.reads) + _costs(node, values, 0, 0)[0] for node in nodes]
    largest = passed.needed[0][needs.index(max(needs))]
    order, exact = _search(nodes, values, peak)
    if not exact:
        # Without its small tensors a network needs no more than with them, and has far fewer orders that differ.
        large = [value if value.nbytes > peak * SMALL else value._replace(nbytes=0) for value in values]
        order = max(order, _search(nodes, large, peak)[0])
    streaming, until, kept = _streaming(schedule)
    without = streaming if kept is None else _streaming(_without_shortcut(schedule, kept))[0]
    shortcut = next((buffer.module for buffer in schedule.buffers if buffer.index == kept), "")
    return Bounds(
        peak_bytes=peak,
        order_bytes=order,
        order_exact=exact,
        op_bytes=max(needs),
        op_name=largest.module or largest.name,
        streaming_bytes=streaming,
        streaming_name=until,
        shortcut_name=shortcut if without < streaming else "",
        without_shortcut_bytes=without,
        in_place_depthwise_bytes=max(in_place.live_bytes()),
    )


def _streaming(schedule: Schedule) -> tuple[int, str, int | None]:
    """Bytes, the last layer of the chain that is worth it, and the buffer at which more readers than one end it."""
    live = schedule.live_bytes()
    buffers = {buffer.index: buffer for buffer in schedule.buffers}
    readers = Counter(index for step in schedule.steps for index in step.reads)
    best, until, chain, beside, kept = max(live), "", 0, 0, None
    for k, step in enumerate(schedule.steps):
        if len(step.reads) != 1 or len(step.writes) != 1 or not step.rows:
            break
        source, made = buffers[step.reads[0]], buffers[step.writes[0]].nbytes
        chained = source.kind == "activation" and source.first == k - 1 if k else source.kind == "input"
        if not chained or readers[source.index] > 1:
            kept = source.index if chained else None
            break
        beside = max(beside, live[k] - source.nbytes - made)  # what is alive apart from the chain
        # The image is there as a whole, of the maps behind it only the rows that are read at once.
        chain += source.nbytes * min(step.rows, source.shape[2]) // source.shape[2] if k else source.nbytes
        peak = max([chain + beside + made, *live[k + 1 :]])
        if peak < best:
            best, until = peak, step.module or step.name
    return best, until, kept


def _without_shortcut(schedule: Schedule, kept: int) -> Schedule:
    """The buffer `kept` is read by the first of its readers alone."""
    first = next(k for k, step in enumerate(schedule.steps) if kept in step.reads)
    steps = tuple(
        step if k <= first else step._replace(reads=tuple(index for index in step.reads if index != kept))
        for k, step in enumerate(schedule.steps)
    )
    buffers = (b._replace(last=first) if b.index == kept else b for b in schedule.buffers)
    return replace(schedule, steps=steps, buffers=tuple(buffers))


class _Value(NamedTuple):
    nbytes: int
    producer: int  # −1: the network's input
    consumers: int  # set of nodes, as bits
    output: bool


class _Node(NamedTuple):
    before: int  # all nodes that have to run first, as bits
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    over: tuple[int, ...]  # values that it may write over if they die with it


def _graph(passed: Trace, size: StorageSize) -> tuple[list[_Node], list[_Value]]:
    """Nodes and one value per storage, of 0 bytes where it need not be there. What mutates a value keeps its turn."""
    ops, fixed = passed.needed
    storages, count = passed.storages, len(passed.storages)
    producer, consumers, nodes = [-1] * count, [0] * count, []
    # By which nodes each value was written and read, and what is before them.
    written, seen = [0] * count, [0] * count
    used = {index for op in ops for index in (*op.reads, *op.mutates)} | {s.index for s in storages if s.output}
    used -= fixed
    for k, op in enumerate(ops):
        reads = tuple(index for index in dict.fromkeys((*op.reads, *op.mutates)) if index in used)
        makes = tuple(index for index in op.writes if index in used)
        before = 0
        for i in reads:
            before |= written[i] | (seen[i] if i in op.mutates else 0)
        for i in reads:
            consumers[i] |= 1 << k
            seen[i] |= before | 1 << k
        for i in makes:
            producer[i] = k
        for i in (*op.writes, *op.mutates):
            written[i] |= before | 1 << k
        over = (i for i in reads if len(makes) == 1 and may_overwrite(op, storages[i], storages[makes[0]], size))
        nodes.append(_Node(before, reads, makes, tuple(over)))
    sizes = [size(storage) if storage.index in used else 0 for storage in storages]
    return nodes, [_Value(sizes[i], producer[i], consumers[i], s.output) for i, s in enumerate(storages)]


def _search(nodes: list[_Node], values: list[_Value], known: int) -> tuple[int, bool]:
    """The least peak of all orders, by best-first search, or a lower bound where that takes too long."""
    floor = _floor(nodes, values)
    if floor >= known:
        return known, True
    everything = (1 << len(nodes)) - 1

    def options(done: int, live: int) -> dict[int, tuple[int, int]]:
        ready = (k for k, node in enumerate(nodes) if not done >> k & 1 and not node.before & ~done)
        return {k: _costs(nodes[k], values, live, ~(done | 1 << k)) for k in ready}

    start = sum(value.nbytes for value in values if value.producer < 0)
    queue, seen = [(floor, 0, 0, start)], set[int]()
    for _ in range(STATES):
        if not queue:
            return known, True  # every other order reaches the known peak
        peak, _, done, live = heapq.heappop(queue)
        if done in seen:
            continue
        seen.add(done)
        # A node that lowers what is live without a new peak can as well run at once: no order loses by it.
        while (costs := options(done, live)) and (
            free := [k for k, (during, after) in costs.items() if during <= peak and after <= live]
        ):
            done, live = done | 1 << free[0], costs[free[0]][1]
        if done == everything:
            return peak, True
        for k, (during, after) in costs.items():
            following = done | 1 << k
            if following not in seen and max(peak, during) < known:
                # Among equals the one that is further on: straight ahead where nothing is at stake.
                heapq.heappush(queue, (max(peak, during), -following.bit_count(), following, after))
    return queue[0][0] if queue else known, not queue


def _floor(nodes: list[_Node], values: list[_Value]) -> int:
    """A lower bound for every order: what must be there when each node runs, by what must run before and after it."""
    floor = 0
    for k, node in enumerate(nodes):
        later = sum(1 << j for j, other in enumerate(nodes) if other.before >> k & 1)
        live = sum(
            value.nbytes
            for value in values
            if (value.producer < 0 or node.before >> value.producer & 1)
            and (value.output or value.consumers & (later | 1 << k))
        )
        floor = max(floor, _costs(node, values, live, later)[0])
    return floor


def _costs(node: _Node, values: list[_Value], live: int, later: int) -> tuple[int, int]:
    """Bytes while a node runs and after it, of `live` before it, where the nodes `later` (bits) are still to run."""
    made = sum(values[i].nbytes for i in node.makes)
    freed = [i for i in node.reads if not values[i].output and not values[i].consumers & later]
    reused = max((values[i].nbytes for i in node.over if i in freed), default=0)
    return live + made - reused, live + made - sum(values[i].nbytes for i in freed)
