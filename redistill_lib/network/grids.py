"""The grid of each map of a pass: how many pixels of the image are one of its own, and which calls change that."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple

from redistill_lib.network.flow import CONVOLUTIONS, FITTING, POOLS, SHUFFLES, TURNS, Call, Extent, Flow
from redistill_lib.red import tokens_in_front

Held = Literal["first", "last", "tokens"]
_BY_SIZE = ("interpolate", "upsample", "fractional_max_pool2d", "max_unpool2d", "max_unpool3d", FITTING)
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "contiguous", "permute", "rearrange")
# Where one operand weighs the other.
PRODUCTS = (
    "mul", "mul_", "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    "multi_head_attention_forward",
)  # fmt: skip
_SQUASHING = ("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softmax", "tanh", "tanh_")
# What leaves a bounded value bounded.
_KEEPING = (
    *_RESHAPES, *_BY_SIZE, "expand", "expand_as", "unsqueeze", "squeeze", "transpose", "__getitem__",
    "add", "sub", "rsub", "mul", "div",
)  # fmt: skip
JOINS = ("add", "add_", "cat", "concat", "concatenate", "stack", "sub", "maximum")


class Grid(NamedTuple):
    """What the maps between two changes of resolution have in common."""

    total: Fraction  # how many pixels of the image are one of theirs, along each side
    size: Extent  # of the first of them
    raw: bool  # the image, or what no convolution has seen yet
    parent: int  # the grid that it comes from, by number; its own for an image


class Change(NamedTuple):
    """A call that takes a map from one grid to another."""

    number: int  # of the call
    source: int  # value
    result: int
    before: int  # grid
    after: int
    factors: tuple[Fraction, ...]  # by side: 2 where it halves, 1/2 where it doubles; () where it keeps it

    @property
    def resizes(self) -> bool:
        return bool(set(self.factors) - {1})


class Grids:
    """The grid of every value of a pass, and the calls that change it."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.grids: list[Grid] = []
        self.of: list[int] = []  # by value: its grid
        self.laid: list[
            str
        ] = []  # by value: "first" or "last" (where its channels are), or "" for no map of its grid
        self.turned = [False] * len(flow.shapes)  # by value: whether its sides are in another order than the image's
        self.changes: list[Change] = []
        self.meets: dict[int, int] = {}  # of a grid that joins an older one: that one
        for shape in flow.shapes[: flow.images]:
            self.of.append(len(self.grids))
            self.laid.append("first")
            self.grids.append(Grid(Fraction(1), tuple(shape[2:]), True, len(self.grids)))
        self.of += [0] * (len(flow.shapes) - flow.images)
        self.laid += [""] * (len(flow.shapes) - flow.images)
        for number, call in enumerate(flow.calls):
            self._follow(number, call)

    def __getitem__(self, number: int) -> Grid:
        return self.grids[number]

    def at(self, value: int) -> Grid:
        return self.grids[self.of[value]]

    def is_map(self, value: int) -> bool:
        return self.laid[value] == "first"

    def held(self, value: int) -> Held | None:
        """How a value holds its grid: channels first, last, or as tokens, whose channels are last too; or not.

        One that holds it by columns does not, as it would be compared with one by rows.
        """
        if self.turned[value]:
            return None
        shape, (batch, *_) = self.flow.shapes[value], self.flow.shapes[0]
        if self.laid[value] == "first" or (self.laid[value] == "last" and shape[0] == batch):
            return self.laid[value]  # type: ignore[return-value]
        if len(shape) != 3 or shape[0] != batch or value in self._sideways:
            return None
        return None if tokens_in_front(shape[1], self.at(value).size) is None else "tokens"

    def held_last(self, value: int) -> bool:
        """Whether it holds its grid with channels last, as a map or as tokens."""
        return self.held(value) in ("last", "tokens")

    def sides(self, value: int) -> Extent:
        """Of a map as it is held: a border that was padded or shaved is told; of other values those of their grid."""
        laid = self.laid[value]
        return self._sides(value, laid) if laid and self.held(value) else self.at(value).size

    @cached_property
    def _sideways(self) -> frozenset[int]:
        """Values B×C×(H·W), as a map is flattened before its channels go last."""
        found = set[int]()
        for call in self.flow.calls:
            source, turned = call.takes[0], call.function in TURNS
            before = self.is_map(source) or source in found
            if before != (turned and len(self.flow.shapes[source]) == 3):
                found.update(value for value in call.makes if len(self.flow.shapes[value]) == 3)
        return frozenset(found)

    def channels(self, value: int) -> int:
        shape = self.flow.shapes[value]
        return shape[-1] if self.laid[value] == "last" or len(shape) < 4 else shape[1]

    def padded_from(self, value: int) -> int:
        """The map that a padded one was made of."""
        for call in self.flow.calls:
            if value in call.makes and call.function == "pad":
                return call.takes[0]
        return value

    def _follow(self, number: int, call: Call) -> None:
        maps = [v for v in call.takes if self.laid[v]]
        seen = [v for v in maps if not self.at(v).raw] or maps or [*call.takes]
        # Where maps meet, they go on in the oldest grid: a gate's is younger than that of the maps it weighs.
        source = min(seen, key=lambda v: self.of[v]) if call.function in (*JOINS, *PRODUCTS) else seen[0]
        before = self.of[source]
        ahead = call.function in (*CONVOLUTIONS, *POOLS, *_BY_SIZE, *SHUFFLES)  # which know channels first alone
        if ahead and self.laid[source] == "last" and is_alike(self._sides(source, "first"), self.grids[before].size):
            self.laid[source] = "first"
        for result in call.makes:
            factors = self._factors(call, source, result)
            stem = self.grids[before].raw and call.function in CONVOLUTIONS and self.laid[source] == "first"
            after = self._change(Change(number, source, result, before, -1, factors)) if factors or stem else before
            self.of[result] = after
            self.turned[result] = self.turned[source] != self._turns(call, source)
            self.laid[result] = self._layout(call, source, result)
        for value in maps if call.function in (*JOINS, *PRODUCTS) else []:
            grid, number = self.at(value), self.of[value]
            if number != before and grid.total == self.grids[before].total:
                self.meets.setdefault(number, before)
                if (
                    grid.raw and grid.total > 1 and not self.grids[before].raw
                ):  # a shrunken image that joins the maps is one of them
                    self.grids[number] = grid._replace(raw=False)

    def _turns(self, call: Call, source: int) -> bool:
        """Whether a call puts the sides of a map in another order."""
        n, laid = self.n(source), self.laid[source]
        if not call.axes or not laid:
            return False
        first = 1 if laid == "last" else 2
        places = [call.axes.index(axis) for axis in range(first, first + n)]
        return places != sorted(places) and sorted(places) in ([*range(1, n + 1)], [*range(2, n + 2)])

    def _change(self, change: Change) -> int:
        before, call = self.grids[change.before], self.flow.calls[change.number]
        if call.function in _RESHAPES:
            size = tuple(int(side / f) for side, f in zip(before.size, change.factors, strict=True))
        else:
            size = self._sides(change.result, self.laid[change.source])
        if call.function == FITTING:  # to the size of a map that was there before
            like = next((g for g in reversed(self.grids) if g.size == size and g.total < before.total), None)
            total = like.total if like else before.total * (change.factors or (Fraction(1),))[0]
        else:
            total = before.total * (change.factors or (Fraction(1),))[0]
        raw = before.raw and call.function not in CONVOLUTIONS
        self.grids.append(Grid(total, size, raw, change.before))
        self.changes.append(change._replace(after=len(self.grids) - 1))
        return len(self.grids) - 1

    def _factors(self, call: Call, source: int, result: int) -> tuple[Fraction, ...]:
        """By side, how many pixels become one; () where the call keeps the resolution."""
        shapes, laid, n = self.flow.shapes, self.laid[source], self.n(source)
        old, new = shapes[source], shapes[result]
        if not laid and call.function in _RESHAPES:
            return self._merged(source, result)
        if not laid or len(new) != n + 2:
            return ()
        if call.function in CONVOLUTIONS or call.function in POOLS:
            up = "transpose" in call.function
            factors = tuple(Fraction(1, s) if up else Fraction(s) for s in call.scales)
            whole = call.function in POOLS and set(new[2:]) == {1} and call.kernel >= tuple(old[2:])
            return () if set(factors) == {Fraction(1)} or whole else factors
        if call.function in SHUFFLES:
            up = call.function == "pixel_shuffle"
            return tuple(Fraction(1, s) if up else Fraction(s) for s in call.scales)
        ours, theirs = self._sides(source, laid), self._sides(result, laid)
        if call.function == "__getitem__" and call.scales:
            return tuple(Fraction(round(a / b)) for a, b in zip(ours, theirs, strict=True))
        if call.function in _BY_SIZE and ours != theirs:
            return tuple(_ratio(a, b) for a, b in zip(ours, theirs, strict=True))
        if call.function in _RESHAPES:
            return self._merged(source, result)
        return ()

    def _merged(self, source: int, result: int) -> tuple[Fraction, ...]:
        """Patches of k×k pixels that a reshape makes channels of."""
        old, new, size = self.flow.shapes[source], self.flow.shapes[result], self.at(source).size
        if len(new) != len(size) + 2 or len(old) <= len(new) or new[0] != self.flow.shapes[0][0]:
            return ()
        for sides, channels in ((new[1:-1], new[-1]), (new[2:], new[1])):
            k = size[0] // max(sides[0], 1)
            whole = channels % k ** len(size) == 0 if k else False
            if k > 1 and whole and all(a == k * b for a, b in zip(size, sides, strict=True)):
                return (Fraction(k),) * len(size)
        return ()

    def n(self, value: int) -> int:
        return len(self.grids[self.of[value]].size)

    def _sides(self, value: int, laid: str) -> Extent:
        shape = self.flow.shapes[value]
        return tuple(shape[1:-1] if laid == "last" else shape[2:])

    def _layout(self, call: Call, source: int, result: int) -> str:
        shape, size = self.flow.shapes[result], self.grids[self.of[result]].size
        if len(shape) != len(size) + 2:
            return ""
        sides = {laid: self._sides(result, laid) for laid in ("first", "last")}
        fits = {laid for laid in sides if sides[laid] == size} or {
            laid for laid in sides if is_alike(sides[laid], size)
        }
        before = self.laid[source]
        if call.function in ("pad", *CONVOLUTIONS, *POOLS) and max(shape[2:]) > 1:
            return before  # whatever the border that it adds or shaves
        if len(fits) == 2 and call.function in ("permute", "movedim", "moveaxis"):
            return "first" if before == "last" else "last"
        return before if before in fits else min(fits, default="")

    @cached_property
    def convolved(self) -> set[int]:
        """The values that have been through a convolution."""
        found = set[int]()
        for call in self.flow.calls:
            found.update(call.makes if call.function in CONVOLUTIONS or found.intersection(call.takes) else ())
        return found

    @cached_property
    def unused(self) -> set[int]:
        """The grids none of whose maps has part in an output, as of early exits that are not asked for."""
        reaching = set(self.flow.gives) or {len(self.of) - 1}
        for call in reversed(self.flow.calls):
            reaching.update(call.takes if reaching.intersection(call.makes) else ())
        return set(range(len(self.grids))) - {self.of[v] for v in reaching}

    @cached_property
    def gates(self) -> set[int]:
        """The grids whose maps reach the outputs only by weighing larger maps."""
        seen: list[frozenset[int]] = [frozenset({self.of[v]}) for v in range(len(self.of))]
        weighing: set[tuple[int, int]] = set()  # (call, value)
        bounded: set[int] = set()  # values between two bounds, as weights are
        for number, call in enumerate(self.flow.calls):
            takes = list(dict.fromkeys(call.takes))
            if call.function in PRODUCTS and len(takes) > 1:
                squashed = [v for v in takes if v in bounded]
                maps = [v for v in takes if not self.at(v).raw]
                others = [v for v in maps if v not in bounded]
                if call.function.startswith("mul") and squashed and others:
                    weighing.update((number, value) for value in squashed)
                    maps = others
                main = min(maps or takes, key=lambda v: len(seen[v]))
                here = self.at(main).total
                for value in maps:
                    more = seen[value] - seen[main]
                    if seen[main] < seen[value] and any(self.grids[g].total > here for g in more):
                        weighing.add((number, value))
            elif call.function in _SQUASHING or (call.function in _KEEPING and bounded.issuperset(takes)):
                bounded.update(call.makes)
            carried = [seen[v] for v in takes if (number, v) not in weighing]
            for result in call.makes:
                seen[result] = frozenset({self.of[result]}).union(*carried)
        reaching = set(self.flow.gives) or {len(self.of) - 1}
        for number, call in reversed(list(enumerate(self.flow.calls))):
            if reaching.intersection(call.makes):
                reaching.update(v for v in call.takes if (number, v) not in weighing)
        return set(range(len(self.grids))) - {self.of[v] for v in reaching}


def _ratio(before: int, after: int) -> Fraction:
    if after >= before:
        return Fraction(1, max(1, round(after / max(before, 1))))
    return Fraction(max(1, round(before / max(after, 1))))


def is_alike(ours: Extent, theirs: Extent) -> bool:
    """Padding and unpadded convolutions add or shave a border; only a real change of scale counts."""
    pairs = [(min(pair), max(pair)) for pair in zip(ours, theirs, strict=True)]
    return all(0.75 * more < less or less >= 3 > more - less for less, more in pairs)
