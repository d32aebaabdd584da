"""The built-in networks, named `<architecture>-<stride plan>`; parameters as in the official checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from redistill_lib.checks import check_type, hint, is_number, whole, wholes
from redistill_lib.models import mobilenet, resnet, unet, vit
from redistill_lib.models.checkpoint import load_checkpoint
from redistill_lib.models.mobilenet import MobileNet
from redistill_lib.models.resnet import ResNet
from redistill_lib.models.unet import UNet, UNetConfig
from redistill_lib.models.vit import VisionTransformer
from redistill_lib.plans import StridePlan

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MobileNet",
    "ResNet",
    "UNet",
    "VisionTransformer",
    "create_model",
    "example_inputs",
    "list_models",
    "load_checkpoint",
    "place_names",
    "student_name",
    "usual_plan",
]

Kind = Literal["classifier", "diffusion"]  # images → logits; images and time steps → noise


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one architecture from another where stride plans are concerned."""

    build: type[ResNet] | type[MobileNet] | type[VisionTransformer] | None  # None: a U-Net
    usual: StridePlan  # the plan of the literature (ImageNet's, DDPM's); a vision transformer's is its patch
    paths: tuple[str, ...]  # the module of each place's stride: "layer3.0.conv1"; U-Net: of two blocks per level
    named: int  # parts of the path that a reader calls the place by
    allowed: tuple[int, ...] = (1, 2, 4)  # strides of every place but the stem
    stem: Sequence[int] = (1, 2, 4, 8, 16)
    pool: tuple[int, ...] = ()  # the place a ×4 or ×8 student removes first: the max pool of a ResNet

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the places: "conv1", "layer3", "features.4"."""
        return tuple(".".join(path.split(".")[: self.named]) for path in self.paths)

    @property
    def kind(self) -> Kind:
        return "classifier" if self.build else "diffusion"

    @property
    def sized(self) -> bool:
        """Whether it has weights for the places in an image, and so an image size."""
        return self.build is VisionTransformer


def _mobilenet(arch: str, usual: str) -> Architecture:
    return Architecture(MobileNet, StridePlan.parse(usual), mobilenet.mobilenet_places(arch), 2, (1, 2))


def _unet(levels: int = unet.LEVELS) -> Architecture:
    return Architecture(None, unet.ddpm_plan(levels), unet.unet_places(levels), 2, stem=(1, 2, 4, 8))


ARCHITECTURES = {
    "mobilenetv2": _mobilenet("mobilenetv2", "2-1222121"),
    "mobilenetv3_large": _mobilenet("mobilenetv3_large", "2-121211211111211"),
    "mobilenetv3_small": _mobilenet("mobilenetv3_small", "2-22121111211"),
    **{
        arch: Architecture(ResNet, StridePlan.parse("2-21222"), resnet.place_paths(arch), 1, pool=(1,))
        for arch in resnet.LAYOUTS
    },
    **{
        arch: Architecture(VisionTransformer, StridePlan(16, ()), ("patch_embed.proj",), 2, stem=range(1, 65))
        for arch in vit.LAYOUTS
    },
    "unet": _unet(),
}


def list_models(kind: Kind | None = None) -> list[str]:
    """The architectures that `create_model` knows, or those of one kind: "classifier" or "diffusion".

    >>> "resnext18" in list_models("classifier"), list_models("diffusion")
    (True, ['unet'])
    """
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f"kind={kind!r} is neither 'classifier' nor 'diffusion' (leave it out for all).")
    return [arch for arch, facts in ARCHITECTURES.items() if kind in (None, facts.kind)]


def _split(name: str) -> tuple[str, Architecture, StridePlan]:
    arch, dash, text = name.partition("-")
    if arch not in ARCHITECTURES:
        close = hint(name.replace("-", "_"), ARCHITECTURES) or hint(arch, ARCHITECTURES)
        known = close or f"; choose from {', '.join(ARCHITECTURES)}."
        if ":" in name:
            known = "; give a network of your own itself, which rd.resolve_model makes of such a name."
        raise ValueError(f"Unknown architecture {arch!r} in model name {name!r}{known}")
    facts = ARCHITECTURES[arch]
    try:
        plan = StridePlan.parse(text) if dash else facts.usual
    except ValueError as error:
        raise ValueError(f"{error} The usual plan of {arch} is {facts.usual}.") from error
    if arch == "unet":
        facts = _unet(len(plan.places))  # as many levels as the plan has places
    _check_plan(arch, facts, plan)
    return arch, facts, plan


def _check_plan(arch: str, facts: Architecture, plan: StridePlan) -> None:
    usual = f"the usual plan of {arch} is {facts.usual}"
    if len(plan.places) != len(facts.names):
        raise ValueError(
            f"Plan {plan} has {len(plan.places)} place{'s' * (len(plan.places) > 1)} where "
            f"{arch} has {len(facts.names)} ({', '.join(facts.names)}); {usual}."
        )
    for index, (name, stride) in enumerate(zip(facts.names, plan.places, strict=True)):
        allowed = facts.allowed if index else facts.stem
        if stride not in allowed:
            choices = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            choices = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else choices
            raise ValueError(f"Plan {plan} puts stride {stride} at {name}, which allows {choices}; {usual}.")


def usual_plan(arch: str) -> StridePlan:
    """The plan of the literature: ImageNet's with stem stride 2 and total 32, or DDPM's, whose head has stride 1.

    >>> str(usual_plan("resnet50"))
    '2-21222'
    """
    return _split(arch)[1].usual


def place_names(name: str) -> tuple[str, ...]:
    """What a reader calls the places of a network's plan, stem first.

    >>> place_names("resnet18-4-11221")
    ('conv1', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4')
    """
    return _split(name)[1].names


def student_name(name: str, factor: int) -> str:
    """The paper's ×`factor` student of a teacher (ReDistill, arXiv 2406.03744, section 4).

    The ×4 and ×8 students of a ResNet give up the max pool's stride first. A vision transformer's patch grows, as
    there is no later stride to give up. Raises ValueError where the teacher has too little stride to move or the
    stem's would exceed 16.

    >>> student_name("resnext18-1-21222", 4), student_name("mobilenetv2-1-1222121", 8)
    ('resnext18-4-11221', 'mobilenetv2-8-1211111')
    """
    try:
        arch, facts, plan = _split(check_type("name", name, str))
    except ValueError as error:
        raise ValueError(f"{error} Of a network of your own, derive_student makes students.") from None
    if plan.stages:
        student = plan.front_loaded(factor, first=facts.pool if factor >= 4 else ())
    else:
        student = StridePlan(plan.stem * whole("factor", factor), ())
    _check_plan(arch, facts, student)
    return f"{arch}-{student}"


def create_model(
    name: str, num_classes: int | None = None, in_channels: int = 3, width: float | None = None, **options: Any
) -> ResNet | MobileNet | VisionTransformer | UNet:
    """A freshly initialised network with the attributes `name` and `plan`: a classifier, or a denoiser's U-Net.

    `name` is `<architecture>-<stride plan>` as in the paper, or the architecture alone for its usual plan.
    A classifier maps float images B×in_channels×H×W to logits B×num_classes (10 unless given); `width`, from 0.125
    to 8 (1 unless given), multiplies its channel counts. A vision transformer's plan is its patch: `vit_tiny-16`,
    or `deit_tiny-16` with a distillation token; `image_size` (224 unless given) is that of its learned positions.
    A U-Net maps images, time steps (int64, B), and labels (int64, B) if it has `num_classes`, to the images'
    shape; its `options` are `strides` (instead of a plan in its name) and those of `UNetConfig`.

    Raises ValueError on an unknown architecture, a plan that it cannot have, or an option of another one.

    >>> model = create_model("resnet18", num_classes=5, in_channels=1, width=0.25)
    >>> model.name, model.plan.total, model(torch.zeros(2, 1, 64, 64)).shape
    ('resnet18-2-21222', 32, torch.Size([2, 5]))
    >>> denoiser = create_model("unet", strides=(2, 2, 2, 1), ch=8)
    >>> denoiser.name, denoiser(torch.zeros(5, 3, 16, 16), torch.arange(5)).shape
    ('unet-2-221', torch.Size([5, 3, 16, 16]))
    """
    arch, facts, plan = _split(name)
    in_channels = whole("in_channels", in_channels)
    own = ["num_classes", "strides", *(field.name for field in fields(UNetConfig))]
    taken = ["num_classes", "width", *["image_size"] * facts.sized] if facts.build else own
    for option, value in {**options, **({} if width is None else {"width": width})}.items():
        if option not in taken:
            raise ValueError(
                f"{arch} has no option {option} (given {value!r}); "
                f"beside its name and in_channels it takes {', '.join(taken)}."
            )
    if facts.build is None:
        plan = _unet_plan(name, options.pop("strides", None), options.get("mult"))
        return UNet(plan, in_channels, num_classes, UNetConfig(**options))
    width = 1.0 if width is None else width
    if not is_number(width) or not 0.125 <= width <= 8:
        raise ValueError(f"width={width!r} is not a multiplier from 0.125 to 8 (1.0 is the paper's width).")
    classes = 10 if num_classes is None else whole("num_classes", num_classes)
    if "image_size" in options and whole("image_size", options["image_size"]) % plan.stem:
        size = f"{options['image_size']}×{options['image_size']}"
        raise ValueError(f"images of {size} cannot be cut into patches of {plan.stem}; choose one that divides them")
    return facts.build(arch, plan, classes, in_channels, float(width), **options)


def example_inputs(
    name: str,
    image_size: int | tuple[int, int],
    *,
    batch: int = 1,
    in_channels: int = 3,
    device: torch.device | str | None = None,
) -> tuple[Tensor, ...]:
    """Zeros such as a network of that name is called with: images B×C×H×W and, for a U-Net, time steps (int64, B).

    >>> [tuple(x.shape) for x in example_inputs("unet-2-221", 32, batch=4)]
    [(4, 3, 32, 32), (4,)]
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.zeros(batch, in_channels, *size, device=device)
    steps = torch.zeros(batch, dtype=torch.int64, device=device)
    return (images, steps) if _split(name)[1].kind == "diffusion" else (images,)


def _unet_plan(name: str, strides: Any, mult: Any) -> StridePlan:
    if strides is not None:
        if "-" in name:
            raise ValueError(f"{name} has its plan in its name; strides={strides!r} can only be given to 'unet'.")
        stem, *stages = wholes("strides", strides) or (1,)
        name = f"{name}-{StridePlan(stem, tuple(stages))}"
    elif "-" not in name and mult is not None:
        name = f"{name}-{unet.ddpm_plan(max(2, len(wholes('mult', mult))))}"
    return _split(name)[2]
