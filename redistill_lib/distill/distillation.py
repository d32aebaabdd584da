"""A student, its teachers, their taps and the methods, as one trainable module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type, whole
from redistill_lib.distill.taps import Tap
from redistill_lib.distill.teachers import LiveTeacher
from redistill_lib.distill.terms import Objective, Term, plan_terms
from redistill_lib.methods import Batch, Method, Shape, check_loss, make_criterion, parse_methods
from redistill_lib.methods.base import shapes_of
from redistill_lib.network import (
    MapRef,
    asking,
    check_float,
    check_followable,
    evaluating,
    find_layer,
    locate,
    map_shapes,
    record_maps,
    run_and_read,
)
from redistill_lib.network.fakes import copy_network
from redistill_lib.network.flow import times
from redistill_lib.red import GridBlock, Side, as_map, fold_blocks, insert_blocks, inserted_blocks, make_in_place

Inputs = tuple[Tensor, ...]


class Distillation(nn.Module):
    """Student and frozen teachers, distilled at taps. Without a teacher it is plain training: the task loss alone.

    Blocks are built into the student itself, one per tapped place; projectors are parameters of this module only. So
    make the optimizer afterwards, over ``distillation.parameters()``. Teachers always stay in eval mode.

    Arguments:
        student: the network to train; its tapped layers take and give tensors. It gets the blocks: give a copy to
            keep the plain one.
        teacher: a network or several, counted by `Tap.teacher`, or `LiveTeacher` of each for options. They are
            frozen, and may not share layers or weights with the student.
        taps: from `match_taps`, `read_taps` or by hand.
        methods: ``"red"``, ``"red+kd(temperature=4.0)"``, ``"red-blocks"`` (the control: blocks, no loss), … or
            method objects. A tap keeps its own method. Left out: what the taps carry, or else RED.
        objective: how task and distillation losses add up.
        example: a batch (or tuple of inputs), to check the shapes of maps at once. Methods with projectors need it.
        samples: number of training images, for methods that remember each of them.

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
        teacher: nn.Module | Sequence[nn.Module] = (),
        taps: Sequence[Tap] = (),
        methods: str | Method | Sequence[str | Method] | None = None,
        *,
        objective: Objective | None = None,
        example: Tensor | Inputs | None = None,
        samples: int = 0,
    ):
        super().__init__()
        whole("samples", samples, 0)
        self.student = check_type("student", student, nn.Module)
        self.objective = check_type("objective", objective, Objective, None) or Objective()
        given = check_type("teacher", teacher, nn.Module, list, tuple)
        networks = [given] if isinstance(given, nn.Module) else [check_type("teacher", k, nn.Module) for k in given]
        _check_apart(student, networks)
        self.teachers: Any = nn.ModuleList(k if isinstance(k, LiveTeacher) else LiveTeacher(k) for k in networks)
        taps = check_type("taps", taps, list, tuple)
        self.taps = [self._located(check_type("a tap", tap, Tap)) for tap in taps]
        if methods is None:
            methods = () if not networks or (self.taps and all(tap.method for tap in self.taps)) else "red"
        self.terms = plan_terms(self.taps, parse_methods(methods), len(networks))
        for term in self.terms:
            self._check_head(term)
        self.active = [term for term in self.terms if term.method.alpha]  # those with a loss
        check_type("example", example, Tensor, tuple, None)
        inputs = example if isinstance(example, tuple) or example is None else (example,)
        ours, theirs = self._shapes(inputs)
        self.criteria = nn.ModuleList()  # of the active terms, in their order
        for term in self.active:
            shapes = [(ours.get(tap.place, ()), theirs.get((tap.teacher, tap.source), ())) for tap in term.taps]
            shape, other = term.given(shapes)
            try:
                with self._explained(term, inputs, shape, other):
                    self.criteria.append(make_criterion(term.method, shape, other, samples))
            except IndexError:
                why = f"{term.method.name} needs the shapes of its maps; give Distillation an example="
                raise ValueError(why) from None
        like = next(student.parameters(), torch.zeros(()))
        self.criteria.to(like.device, torch.promote_types(like.dtype, torch.float32))
        self._build_blocks(ours, like)  # last, so that a student that is refused stays as it was
        #: Where the student's maps are found now that the blocks are in: located once, read in every step.
        places = dict.fromkeys(tap.place for term in self.terms for tap in term.taps)
        self._found = {ref: locate(student, ref) for ref in places}

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in the student, in tap order."""
        built = {MapRef(path, side): block for path, side, block in inserted_blocks(self.student)}
        return nn.ModuleList(built[place] for place in self._found if place in built)

    def _located(self, tap: Tap) -> Tap:
        if not self.teachers:
            raise ValueError(f"tap {tap.name} compares with a teacher, and there is none; give teacher=")
        if tap.teacher > (last := len(self.teachers) - 1):
            raise ValueError(f"tap {tap.name} wants teacher {tap.teacher}; teachers are 0 to {last}")
        teacher = self.teachers[tap.teacher].network
        check_followable(self.student, "student")
        check_followable(teacher, "teacher")
        layer = find_layer(self.student, tap.layer, "student")
        return replace(tap, layer=layer, teacher_layer=find_layer(teacher, tap.teacher_layer, "teacher"))

    def _check_head(self, term: Term) -> None:
        """Refuse a method on the output of a head that the student lacks."""
        if term.method.reads == "outputs" and term.tap not in self.taps:
            try:
                find_layer(self.student, term.tap.layer, "student")
            except KeyError as error:
                own = getattr(self.student, "name", type(self.student).__name__)
                raise ValueError(
                    f"{term.method.name} teaches a second head, {term.tap.layer!r}, which {own} does not have: take "
                    f"a network with one, such as deit_tiny-16, or name it, {term.method.name}(layer='…')"
                ) from error

    def _shapes(self, inputs: Inputs | None) -> tuple[dict[MapRef, Shape], dict[tuple[int, MapRef], Shape]]:
        """The shapes of the student's and the teachers' maps; empty without an example."""
        if inputs is None or not self.terms:
            return {}, {}
        check_float(inputs)
        with asking(inputs, "student"):
            ours = record_maps(self.student, [tap.place for term in self.terms for tap in term.taps], *inputs)
        with asking(inputs, "teacher"):
            theirs = self.teacher_maps(Batch(inputs))
        found: tuple[dict[MapRef, Shape], dict[tuple[int, MapRef], Shape]] = {}, {}
        for term in self.terms:
            with self._explained(term):
                for tap in term.taps:
                    source = tap.teacher, tap.source
                    found[0][tap.place] = tuple(as_map(ours[tap.place], tap.grid).shape[1:])
                    if source in theirs:
                        found[1][source] = tuple(as_map(theirs[source], tap.teacher_grid).shape[1:])
        return found

    def _build_blocks(self, shapes: dict[MapRef, Shape], like: Tensor) -> None:
        built = {MapRef(path, side): block for path, side, block in inserted_blocks(self.student)}
        new: list[tuple[str, Side, nn.Module]] = []
        for tap, method in [(tap, term.method) for term in self.terms for tap in term.taps]:
            shape = shapes.get(tap.place, ())
            if shape and tap.channels not in (None, shape[0]):
                raise ValueError(
                    f"tap {tap.name} is set up for {tap.channels} channels, but the student's map there is {shape}; "
                    f"set its channels (cs) to {shape[0]}"
                )
            try:
                block = tap.block(method, shape)
            except IndexError:
                raise ValueError(f"tap {tap.name} lacks the student's channels: give channels= or example=") from None
            if block is None:
                continue
            if not isinstance(block, nn.Module):
                raise TypeError(f"{method.name}.block returns a {type(block).__name__}, not an nn.Module or None")
            if not tap.layer:
                raise ValueError(f"{method.name} needs a layer inside the student, not the whole network")
            if shape:
                inner = block.block if isinstance(block, GridBlock) else block
                with evaluating(inner):
                    made = tuple(inner(torch.zeros(1, *shape)).shape[1:])
                if made != shape:
                    raise ValueError(f"{method.name}'s block makes {made} of {shape}; a block keeps the map's shape")
            if tap.place not in built:
                built[tap.place] = block.to(like.device, like.dtype)
                new.append((*tap.place, built[tap.place]))
            elif repr(block) != repr(built[tap.place]):
                raise ValueError(f"two taps want different blocks on {tap.name}; one place takes one block")
        insert_blocks(self.student, new)

    @contextmanager
    def _explained(
        self, term: Term, inputs: Inputs | None = None, shape: Shape = (), other: Shape = ()
    ) -> Iterator[None]:
        """Errors of a term name its tap and, of maps of unequal size, the nearest teacher layer that would fit."""
        try:
            yield
        except ValueError as error:
            tap, near = term.tap, ""
            if not tap.layer:
                raise
            if inputs and not term.joint and len(shape) > 2 and shape[1:] != other[1:]:
                maps = map_shapes(self.teachers[tap.teacher].network, *inputs)
                order = {found.layer: k for k, found in enumerate(maps)}
                fits = [found for found in maps if found.sides == shape[1:]]
                fits.sort(key=lambda found: abs(order[found.layer] - order.get(tap.teacher_layer, 0)))
                wanted = times(shape[1:])
                near = f"; no teacher layer gives {wanted}"
                if fits:
                    near = f"; the nearest teacher layer whose output is {wanted} is {fits[0].layer!r}"
                    near += f" with teacher_grid={fits[0].grid}" if fits[0].grid else ""
            places = ", ".join(f"{tap.name} ← {tap.source}" for tap in term.taps)
            raise ValueError(f"tap{'s' * bool(term.more)} {places}: {error}{near}") from None

    def forward(
        self, *inputs: Tensor, targets: Any = None, index: Tensor | None = None, view: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """One pass of the student and its teachers.

        `index` and `view` are as in `Batch`. Returns the student's outputs and the losses by name: one per term
        (before its alpha), ``distill`` (D), ``task`` (absent without targets) and ``total``, the one to minimise.
        """
        check_float(inputs)
        if self.training and torch.is_grad_enabled() and not self.student.training:
            raise RuntimeError("the student is in eval mode; call distillation.train(), or .eval() to look")
        batch = Batch(inputs, targets, index, view)
        theirs = self.teacher_maps(batch)
        outputs, ours = run_and_read(self.student, self._found, inputs, "student")
        losses: dict[str, Tensor] = {}
        for term, criterion in zip(self.active, self.criteria, strict=True):
            losses[term.name] = self._compare(term, criterion, ours, theirs, batch)
        losses["distill"] = self._distill_loss(losses)
        w = self.objective.distill_weight if self.teachers else 0.0
        if targets is None:
            losses["total"] = losses["distill"]
            return outputs, losses
        task = losses["task"] = self.objective.task_loss(outputs, targets)
        losses["total"] = task + losses["distill"] if w is None else (1 - w) * task + w * losses["distill"]
        return outputs, losses

    def teacher_maps(self, batch: Batch) -> dict[tuple[int, MapRef], Tensor]:
        """The teachers' maps that the methods compare with."""
        found = {}
        for k, teacher in enumerate(self.teachers):
            if refs := [tap.source for term in self.active for tap in term.taps if tap.teacher == k]:
                found.update({(k, ref): x for ref, x in teacher.maps(batch, refs).items()})
        return found

    def _compare(
        self,
        term: Term,
        criterion: nn.Module,
        ours: Mapping[MapRef, Tensor],
        theirs: Mapping[tuple[int, MapRef], Tensor],
        batch: Batch,
    ) -> Tensor:
        """A term's loss, in the precision of its criterion's parameters, or else at least in single precision."""
        maps = [ours[tap.place] for tap in term.taps]
        if self.training and torch.is_grad_enabled() and not all(x.requires_grad for x in maps):
            raise RuntimeError(
                f"{term.name} would teach the student nothing: its map carries no gradient. Layers before it are "
                "frozen or detached, or run under gradient checkpointing with use_reentrant=True (use False)"
            )
        with self._explained(term):
            pairs = [tap.maps(x, theirs[tap.teacher, tap.source]) for tap, x in zip(term.taps, maps, strict=True)]
        own = next(criterion.parameters(), None)
        dtype = torch.promote_types(maps[0].dtype, torch.float32) if own is None else own.dtype
        s, t = term.given([(x.to(dtype), other.to(dtype)) for x, other in pairs])
        told = self._explained(term, batch.inputs, shapes_of(s), shapes_of(t))
        with told, torch.autocast(maps[0].device.type, enabled=False):
            loss = check_loss(term.method.name, criterion(s, t, batch))
        if self.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise RuntimeError(f"{term.name} would teach the student nothing: its loss carries no gradient")
        return loss

    def _distill_loss(self, losses: dict[str, Tensor]) -> Tensor:
        weighted: dict[str, list[Tensor]] = {}
        for term in self.active:
            weighted.setdefault(term.method.name, []).append(term.method.alpha * losses[term.name])
        if not weighted:
            return next(self.student.parameters()).new_zeros(())
        if self.objective.reduction == "sum":
            return torch.stack([torch.stack(parts).mean() for parts in weighted.values()]).sum()
        return torch.stack([loss for parts in weighted.values() for loss in parts]).sum() / len(self.terms)

    def settings(self) -> dict[str, Any]:
        """For a run's record: the terms with all their options, what is resized for them, and how they add up."""
        resized = {t.name: getattr(c, "resized", "") for t, c in zip(self.active, self.criteria, strict=True)}
        terms = []
        for t in sorted(self.terms, key=lambda term: term.method.name):  # in tap order, as blocks are drawn
            sources = ", ".join(str(tap.source) for tap in t.taps)
            terms.append({"at": t.name, "from": sources, "method": t.method.name, **asdict(t.method), **t.tap.held})
            if t.more:
                terms[-1]["taps"] = [tap.name for tap in t.taps]
                terms[-1] |= {"held": held} if any(held := [tap.held for tap in t.taps]) else {}
            if resized.get(t.name):
                terms[-1]["resized"] = resized[t.name]
        several = len({term.method.name for term in self.terms}) > 1  # of one method, sum and mean are the same
        reduction = self.objective.reduction if several else "mean"
        return {"terms": terms, "distill_weight": self.objective.distill_weight, "reduction": reduction}

    def graduate(
        self, *, in_place: bool = False, folded: bool = False, example: Tensor | Inputs | None = None
    ) -> nn.Module:
        """The student as a plain module: a copy with its blocks, without teachers and criteria.

        With ``folded=True`` it is for inference only (in eval mode, frozen), the batch norms of its blocks folded
        into their convolutions: it answers the same up to rounding.

        With ``in_place=True`` it is for inference only (in eval mode, frozen), and its blocks overwrite their input
        maps (`red.InPlaceRedBlock`), except where the pass of `example`, a batch or tuple of inputs, shows that
        something else reads the map: `red.make_in_place` says which and why. Raises ValueError where none can.
        """
        if not in_place:
            return fold_blocks(copy_network(self.student)) if folded else copy_network(self.student)
        if example is None:
            raise ValueError("graduate(in_place=True) needs example=, a batch that shows who reads a map")
        model = make_in_place(copy_network(self.student), *(example if isinstance(example, tuple) else (example,)))[0]
        return fold_blocks(model) if folded else model  # those that stayed plain

    def extra_repr(self) -> str:
        sources = [", ".join(tap.teacher_layer or "outputs" for tap in term.taps) for term in self.terms]
        return "\n".join(f"{t.method.alpha:g} · {t.name} ← {s}" for t, s in zip(self.terms, sources, strict=True))


def _check_apart(student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Refuse shared parts: they would be frozen, kept in eval mode, or change both networks."""
    for teacher in teachers:
        theirs = {part for _, part in _parts(teacher)}
        if teacher is student or (shared := [name for name, part in _parts(student) if part in theirs]):
            what = "are the same object" if teacher is student else f"share {', '.join(shared[:3])}"
            raise ValueError(f"student and teacher {what}; give each its own, by copy.deepcopy")


def _parts(model: nn.Module) -> list[tuple[str, int]]:
    """Name and identity of modules, parameters and buffers; tensors are the same where their memory is."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modules = [(name, id(module)) for name, module in model.named_modules()]
    return modules + [(name, tensor.untyped_storage()._cdata) for name, tensor in tensors]
