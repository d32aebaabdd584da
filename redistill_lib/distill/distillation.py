"""A student, its teachers, their taps and the methods, as one trainable module; and the way out of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.distill.taps import Tap
from redistill_lib.methods import Method, REDBlocks, make_method, parse_methods
from redistill_lib.network import Place, check_float, evaluating, feature_maps, find_layer, map_shapes, tapping
from redistill_lib.red import insert_blocks, make_in_place

_OPTIONS = ("alpha", "distance", "kernel_size", "temperature")


@dataclass(frozen=True)
class Term:
    """One summand of the distillation loss: ``method.alpha · method.loss`` at a tap."""

    tap: Tap
    method: Method

    @property
    def name(self) -> str:
        place = f"/{self.tap.name}" if self.tap.layer else ""
        return f"{self.method.name}{place}" + (f"@{self.tap.teacher}" if self.tap.teacher else "")


def plan_terms(taps: Sequence[Tap], methods: Sequence[Method], teachers: int = 1) -> list[Term]:
    """Which method acts at which tap. Raises where a tap or a method would have no effect.

    A tap that carries a method keeps it, except that ``red-blocks`` among `methods` takes the loss off RED taps.
    A method on the networks' outputs is added for every teacher, unless a tap carries it already.
    """
    control = any(isinstance(method, REDBlocks) for method in methods)
    at_taps = [method for method in methods if not method.on_outputs]
    terms = []
    for tap in taps:
        own = {key: getattr(tap, key) for key in _OPTIONS if getattr(tap, key) is not None}
        if tap.method == "red" and control:
            own = {key: value for key, value in own.items() if key == "kernel_size"}
            terms += [Term(tap, replace(m, **own)) for m in methods if isinstance(m, REDBlocks)]
        elif tap.method is not None:  # what the tap leaves open is as `methods` has it
            given = next((m for m in methods if m.name == tap.method), None)
            terms.append(Term(tap, replace(given, **own) if given else make_method(tap.method, **own)))
        elif at_taps:
            terms += [Term(tap, replace(method, **own)) for method in at_taps]
        else:
            raise ValueError(f"no method uses tap {tap.name}; add one that does, such as red, or leave the taps out")
    carried = {term.method.name for term in terms}
    for method in methods:
        if method.name in carried:
            continue
        if not method.on_outputs:
            why = "every tap carries another method" if taps else "there are no taps; match_taps finds them"
            raise ValueError(f"{method.name} would add nothing: {why}")
        terms += [Term(Tap("", "output", "", "output", teacher=k), method) for k in range(teachers)]
    names = [term.name for term in terms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the same method is given twice at one place: {', '.join(sorted(twice))}")
    return terms


class _AllSeen(Exception):
    """Every map that is wanted of a teacher is there: what follows in it, often its widest maps, need not run."""


class Distillation(nn.Module):
    """Student and frozen teachers, distilled at taps.

    The objective is ``(1 − w) · task + w · D`` with ``w = distill_weight``, where D is the plain mean of
    ``alpha · loss`` over all taps: input and output taps count apart, KD counts as one more (arXiv 2406.03744,
    section 3). ``distill_weight=None`` is the plain sum ``task + D``.

    Blocks (one per tapped place, in tap order) replace the student's tensor at their place while this module runs;
    the student itself is not changed. Teachers are frozen and stay in eval mode whatever ``train()`` is called on.

    Arguments:
        student: the network to train; any module whose tapped layers take and give tensors.
        teacher: a network or several; `Tap.teacher` says which one a tap means. Their parameters stop
            requiring gradients.
        taps: from `match_taps`, `read_taps` or by hand.
        methods: ``"red"``, ``"kd"``, ``"red+kd"``, ``"red-blocks"`` (the control: blocks, no loss), … or method
            objects. A tap that carries its own method keeps it. Left out: what the taps carry, or else RED.
        options: per method name, e.g. ``{"red": {"alpha": 1.0, "distance": "mse"}}``.
        task_loss: ``task_loss(outputs, targets)`` → scalar.
        example: a batch (or tuple of inputs) to check sizes with at once and to find channels taps leave out.

    >>> def net(*strides): return nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, s, 1) for i, s in
    ...     enumerate(strides)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> tap = Tap("0", "output", "1", "output", channels=8)
    >>> distillation = Distillation(net(4, 1), net(2, 2), [tap], methods="red+kd")
    >>> outputs, losses = distillation(torch.rand(2, 3, 16, 16), targets=torch.tensor([0, 1]))
    >>> sorted(losses)
    ['distill', 'kd', 'red/0.output', 'task', 'total']
    >>> type(distillation.graduate()).__name__
    'Sequential'
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module],
        taps: Iterable[Tap] = (),
        methods: str | Sequence[str | Method] | None = None,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        distill_weight: float | None = 0.5,
        task_loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy,
        example: Tensor | tuple[Tensor, ...] | None = None,
    ):
        super().__init__()
        if distill_weight is not None and not 0 <= distill_weight <= 1:
            raise ValueError(
                f"distill_weight is a share between 0 and 1, or None for a plain sum, not {distill_weight}"
            )
        self.student = student
        self.teachers = nn.ModuleList([teacher] if isinstance(teacher, nn.Module) else teacher)
        if any(t is student for t in self.teachers):
            raise ValueError("student and teacher are the same object; build the student with its own weights")
        self.teachers.requires_grad_(False).eval()
        self.distill_weight, self.task_loss = distill_weight, task_loss
        inputs = example if isinstance(example, tuple) or example is None else (example,)
        taps = [self._located(tap) for tap in taps]
        if inputs is not None:
            taps = self._with_channels(taps, inputs)
        if methods is None:
            methods = () if taps and all(tap.method for tap in taps) else "red"
        self.taps = taps
        self.terms = plan_terms(taps, parse_methods(methods, options), len(self.teachers))
        self._followed: set[int] = set()  # teachers that have run to their end once
        self.places: list[Place] = []  # of the blocks, index by index
        self.blocks = nn.ModuleList()
        self._build_blocks()
        like = next(student.parameters(), None)
        if like is not None:
            self.blocks.to(like.device, like.dtype)
        if inputs is not None:
            with evaluating(self):
                self._compare(inputs, {})

    def _located(self, tap: Tap) -> Tap:
        if not 0 <= tap.teacher < len(self.teachers):
            raise ValueError(
                f"tap {tap.name} wants teacher {tap.teacher}; teachers are 0 to {len(self.teachers) - 1}"
            )
        teacher_layer = find_layer(self.teachers[tap.teacher], tap.teacher_layer, "teacher")
        return replace(tap, layer=find_layer(self.student, tap.layer, "student"), teacher_layer=teacher_layer)

    def _with_channels(self, taps: list[Tap], inputs: tuple[Tensor, ...]) -> list[Tap]:
        maps = feature_maps(self.student, [tap.place for tap in taps], *inputs)
        for tap in taps:
            _check_channels(tap, maps[tap.place], tap.channels)
        return [replace(tap, channels=maps[tap.place].shape[1]) for tap in taps]

    def _build_blocks(self) -> None:
        for tap, method in ((term.tap, term.method) for term in self.terms):
            if not method.has_block:
                continue
            if tap.channels is None:
                raise ValueError(
                    f"tap {tap.name} lacks the student's channels: give it channels=…, or give an example="
                )
            if not tap.layer:
                raise ValueError(f"{method.name} needs a layer inside the student, not the whole network")
            block = method.block(tap.channels)
            assert block is not None  # has_block
            if tap.place not in self.places:
                self.places.append(tap.place)
                self.blocks.append(block)
            elif repr(block) != repr(self.blocks[self.places.index(tap.place)]):
                raise ValueError(f"two taps want different blocks on {tap.name}; one place takes one block")

    # ------------------------------------------------------------------------------------------------ running

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teachers.eval()
        return self

    def forward(self, *inputs: Tensor, targets: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """One pass of the student and its teachers.

        Returns the student's outputs and the losses by name: one per term (before its alpha), ``distill`` (D),
        ``task`` (absent without targets) and ``total``, the one to minimise. Extra keywords go to every network.
        """
        self.teachers.eval()  # someone may have called train() on a teacher itself
        outputs, losses = self._compare(inputs, kwargs)
        weighted = [term.method.alpha * losses[term.name] for term in self.terms if term.method.alpha]
        zero = next(self.student.parameters()).new_zeros(())
        losses["distill"] = torch.stack(weighted).sum() / len(self.terms) if weighted else zero
        if targets is None:
            losses["total"] = losses["distill"]
            return outputs, losses
        losses["task"] = self.task_loss(outputs, targets)
        share = self.distill_weight
        task = losses["task"] if share is None else (1 - share) * losses["task"]
        losses["total"] = task + (losses["distill"] if share is None else share * losses["distill"])
        return outputs, losses

    def predict(self, *inputs: Tensor, **kwargs: Any) -> Any:
        """The student's outputs, blocks included, without any teacher."""
        return self._student(inputs, kwargs)

    def settings(self) -> dict[str, Any]:
        """What a run's record says about the distillation: its terms with all their options, and the weight."""
        terms = [
            {"at": t.name, "from": f"{t.tap.teacher_layer}.{t.tap.teacher_side}", **asdict(t.method)}
            for t in self.terms
        ]
        return {"terms": terms, "distill_weight": self.distill_weight}

    def graduate(self, *, in_place: bool = False, example: Tensor | tuple[Tensor, ...] | None = None) -> nn.Module:
        """The distilled student as a plain module: its own copy, blocks built in, no teacher and no hooks.

        In eval mode its outputs equal `predict`'s. It can be copied, exported, trained on and saved.

        With ``in_place=True`` it is for inference only (in eval mode, frozen), and its blocks overwrite their input
        maps slab by slab instead of holding two more maps (`red.InPlaceRedBlock`). One pass of `example`, a batch or
        tuple of inputs, shows who else reads a map: a block on a skip connection or on the network's own input
        stays plain, and `repr` shows which did. Applied to a plain graduate, `red.make_in_place` also says why.
        Raises ValueError if no block can work in place.
        """
        student, blocks = copy.deepcopy(self.student), copy.deepcopy(self.blocks)
        model = insert_blocks(student, [(*place, block) for place, block in zip(self.places, blocks, strict=True)])
        if in_place != (example is not None):
            raise ValueError(
                "graduate takes in_place=True together with example=, a batch that shows who reads a map"
            )
        if example is not None:
            plain = make_in_place(model, *(example if isinstance(example, tuple) else (example,)))
            if len(plain) == len(blocks):
                why = "; ".join(f"{path}: {reason}" for path, reason in plain.items()) or "there is none"
                raise ValueError(f"no RED block can work in place ({why}); graduate() gives the plain form")
        return model

    def extra_repr(self) -> str:
        return "\n".join(
            f"{term.method.alpha:g} · {term.name} ← {term.tap.teacher_layer or 'outputs'}" for term in self.terms
        )

    def _compare(self, inputs: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """The student's outputs and the loss of every term, each taken the moment the student's tensor is there."""
        check_float(inputs)
        wanted = self._teacher_maps(inputs, kwargs)
        losses: dict[str, Tensor] = {}

        def compare(place: Place, x: Tensor) -> None:
            for term in (t for t in self.terms if t.method.alpha and t.tap.place == place):
                source = (term.tap.teacher_layer, term.tap.teacher_side)
                try:
                    losses[term.name] = term.method.loss(x, wanted[term.tap.teacher, source])
                except ValueError as error:
                    hint = _near_layer(self.teachers[term.tap.teacher], inputs, x, source)
                    raise ValueError(f"tap {term.tap.name} ← {'.'.join(source)}: {error}{hint}") from None

        outputs = self._student(inputs, kwargs, compare)
        return outputs, {term.name: losses[term.name] for term in self.terms if term.method.alpha}

    def _teacher_maps(self, inputs: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> dict[tuple[int, Place], Tensor]:
        found: dict[tuple[int, Place], Tensor] = {}
        wanted: dict[int, set[tuple[int, Place]]] = {}

        def keep(key: tuple[int, Place], x: Tensor) -> None:
            if key in found:
                raise RuntimeError(f"teacher layer {key[1][0]!r} runs more than once per pass; tap a layer around it")
            found[key] = x.clone()  # what follows in the teacher may work in place
            if key[0] in self._followed and wanted[key[0]] <= found.keys():
                raise _AllSeen

        for index, teacher in enumerate(self.teachers):
            taps = [term.tap for term in self.terms if term.method.alpha and term.tap.teacher == index]
            visits = {
                place: partial(keep, (index, place)) for place in ((t.teacher_layer, t.teacher_side) for t in taps)
            }
            if not visits:
                continue
            wanted[index] = {(index, place) for place in visits}
            with torch.no_grad(), tapping(teacher, visits), contextlib.suppress(_AllSeen):
                teacher(*inputs, **kwargs)
                self._followed.add(index)  # to its end, so that no tapped layer runs twice
            if missing := [".".join(place) for place in visits if (index, place) not in found]:
                raise RuntimeError(
                    f"the teacher's forward pass never reached {', '.join(missing)}, which a tap wants"
                )
        return found

    def _student(
        self,
        inputs: tuple[Tensor, ...],
        kwargs: Mapping[str, Any],
        compare: Callable[[Place, Tensor], None] | None = None,
    ) -> Any:
        blocks = dict(zip(self.places, self.blocks, strict=True))
        reached: set[Place] = set()

        def visit(tap: Tap, x: Tensor) -> Tensor:
            if tap.place in reached:
                raise RuntimeError(f"student layer {tap.layer!r} runs more than once per pass; tap a layer around it")
            reached.add(tap.place)
            if block := blocks.get(tap.place):
                _check_channels(tap, x, getattr(block, "channels", None))
                x = block(x)
            if compare:
                compare(tap.place, x.clone())  # what follows in the student may work in place
            return x

        with tapping(self.student, {term.tap.place: partial(visit, term.tap) for term in self.terms}):
            outputs = self.student(*inputs, **kwargs)
        if missing := [term.tap.name for term in self.terms if term.tap.place not in reached]:
            raise RuntimeError(f"tapped student layers that the forward pass never reached: {', '.join(missing)}")
        return outputs


def _check_channels(tap: Tap, x: Tensor, channels: int | None) -> None:
    if channels not in (None, x.shape[1]):
        raise ValueError(
            f"tap {tap.name} is set up for {channels} channels, but the student's tensor there is {tuple(x.shape)}; "
            f"set its channels (cs) to {x.shape[1]}"
        )


def _near_layer(teacher: nn.Module, inputs: tuple[Tensor, ...], x: Tensor, place: Place) -> str:
    """Which teacher layer would fit, of those nearest to the one asked for in order of execution."""
    if x.ndim != 4 or len(inputs) > 1:
        return ""
    shapes = map_shapes(teacher, *inputs)
    order = {path: k for k, (path, _, _) in enumerate(shapes)}
    fits = [path for path, _, out in shapes if out[-2:] == x.shape[-2:]]
    if not fits:
        return f"; no teacher layer gives {x.shape[-2]}×{x.shape[-1]}"
    near = min(fits, key=lambda path: abs(order[path] - order.get(place[0], 0)))
    return f"; the nearest teacher layer whose output is {x.shape[-2]}×{x.shape[-1]} is {near!r}"
