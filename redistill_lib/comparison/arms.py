"""Arms of a comparison: which network, how wide, on which images, and who teaches it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from redistill_lib.checks import check_type, whole
from redistill_lib.distill import Tap
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models import create_model, list_models
from redistill_lib.network.fakes import outlines
from redistill_lib.train import Recipe


@dataclass(frozen=True)
class Arm:
    """A way to a classifier of some peak: which network, how wide, on which images, and who teaches it.

    Arguments:
        model: a built-in name with its plan, or a network.
        methods: as for `distill_classifier`, kept as a tuple of methods; None: it learns from labels alone.
        width: of a built-in name, from 0.125 to 8.
        image_size: the side in pixels to which images are resized first; None: as the data are.
        recipe: how it is trained; its length is set by the comparison's budget, `init` says where it starts.
        taps: as for `distill_classifier`.

    Raises ValueError for what cannot be built or does not go together.

    >>> arm = Arm("resnet18-4-11221", "red+kd", width=0.25)
    >>> [method.name for method in arm.methods], arm.taught, Arm("resnet18-2-21222", width=0.125).taught
    (['red', 'kd'], True, False)
    """

    model: str | nn.Module
    methods: str | Method | Sequence[str | Method] | None = None
    width: float = 1.0
    image_size: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    taps: Sequence[Tap] | None = None

    def __post_init__(self) -> None:
        check_type("model", self.model, str, nn.Module)
        object.__setattr__(self, "width", check_type("width", self.width, float))
        if isinstance(self.model, str):
            check_classifier(self.model, self.width)
        elif self.width != 1.0:
            raise ValueError(f"width={self.width:g} is for built-in names; a network of your own is as wide as it is")
        if self.image_size is not None:
            whole("image_size", self.image_size)
        if type(self.recipe) is not Recipe:
            raise ValueError(f"recipe is a Recipe, not a {type(self.recipe).__name__}")
        if self.taps is not None:
            taps = tuple(check_type("a tap", tap, Tap) for tap in check_type("taps", self.taps, Sequence))
            object.__setattr__(self, "taps", taps)
        if self.methods is None:
            if self.taps is not None:
                raise ValueError(
                    "taps say where a teacher's maps are compared with, and no method does: give methods"
                )
            return
        object.__setattr__(self, "methods", parse_methods(self.methods))
        if not self.methods and not any(tap.method for tap in self.taps or ()):
            raise ValueError("methods names none, so nothing would be taught; name one, or leave it out")
        if self.image_size is not None:
            raise ValueError(
                f"with methods, student and teacher see the same images: leave image_size={self.image_size} out, or "
                "give the comparison data of that size"
            )

    @property
    def method_list(self) -> tuple[Method, ...]:
        """Those given; taps may carry more."""
        return cast("tuple[Method, ...]", self.methods or ())

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to be there, if only to show where blocks go."""
        return self.methods is not None or self.recipe.init == "teacher"

    @property
    def taught(self) -> bool:
        """Whether it learns from a teacher, by a loss or by starting from its weights."""
        methods = [*self.method_list, *(tap.method for tap in self.taps or () if tap.method)]
        return self.recipe.init == "teacher" or any(method.alpha for method in methods)


def check_classifier(name: str, width: float) -> None:
    check_type("width", width, float)
    arch = check_type("a network's name", name, str).partition("-")[0]
    if arch in list_models("diffusion"):
        raise ValueError(f"{arch} is no classifier; there are {', '.join(list_models('classifier'))}")
    with outlines():
        create_model(name, width=width)


@contextlib.contextmanager
def named(who: str) -> Iterator[None]:
    """While open, an error says whose it is."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        kind = FloatingPointError if isinstance(error, FloatingPointError) else ValueError
        raise kind(f"{who}: {error}") from error
    except Exception as error:
        error.add_note(f"This is of {who}.")
        raise
