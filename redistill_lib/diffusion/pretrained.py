"""Students of diffusers networks in diffusers' own format: a folder with config.json and safetensors."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from redistill_lib.checks import check_type
from redistill_lib.red import describe_block, insert_blocks, inserted_blocks, restore_place
from redistill_lib.student import derive_student

VARIANT = "redistill"  # of a student's weights, so that the teacher's class finds none that it could take for its own
PREFIX = "Student"


def save_pretrained(model: nn.Module, folder: str | Path, variant: str | None = None) -> None:
    """Write a diffusers network, derived or not, with RED blocks or without, as its own `save_pretrained` does.

    The config also says how the student was derived and where its blocks are, and names the class of `as_student`.
    Raises TypeError for a network that is not of diffusers, ValueError for blocks in place.

    >>> save_pretrained(model, "student/unet"); model = load_pretrained("student/unet")        # doctest: +SKIP
    """
    as_student(model).save_pretrained(folder, variant=variant)


def load_pretrained(folder: str | Path, variant: str | None = None) -> nn.Module:
    """A diffusers network in eval mode, a student or not, from its folder or that of its pipeline.

    `variant`: of the weights' files, such as "fp16". Raises FileNotFoundError where there are no such safetensors and
    ValueError where they are not those of the network.
    """
    import diffusers

    check_type("folder", folder, str, Path)
    folder = Path(folder, "unet" if Path(folder, "model_index.json").is_file() else "")
    if not (folder / "config.json").is_file():
        fix = "name the folder that save_pretrained wrote (networks on the hub: UNet2DModel.from_pretrained)"
        raise FileNotFoundError(f"{folder} has no config.json; {fix}")
    config: Any = diffusers.UNet2DModel.load_config(folder)
    base = getattr(diffusers, config["_class_name"].removeprefix(PREFIX))
    student = config["_class_name"].startswith(PREFIX) or config.get("derived") or config.get("red_blocks")
    kind = _student_of(base) if student else base
    options = {"variant": variant, "use_safetensors": True, "output_loading_info": True, "local_files_only": True}
    try:
        model, found = kind.from_pretrained(folder, **options)
    except OSError as error:
        for file in folder.glob("*.safetensors"):
            try:
                safe_open(file, "np")  # compares its header with its size
            except SafetensorError as cut:
                raise ValueError(f"{file} is cut short or damaged ({cut}); save or fetch it again") from error
        there = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
        fix = "give the variant in their names, or rename them to diffusion_pytorch_model.safetensors"
        if not any(folder.glob("*.safetensors")):
            fix = "pickled weights are not read: UNet2DModel.from_pretrained(folder).save_pretrained(folder) converts"
        raise FileNotFoundError(f"no such weights in {folder}, but {', '.join(there) or 'none'}; {fix}") from error
    _check_loaded(found, folder)
    return model.eval()


def as_student(model: nn.Module) -> Any:
    """The same network, of a class whose own `save_pretrained` and `from_pretrained` keep strides and blocks.

    What `load_pretrained` returns is of that class already; any other student needs it before a pipeline saves it:
    ``DDPMPipeline(as_student(model), scheduler).save_pretrained(folder)``. A network without moved strides and blocks
    comes back as it is. Raises TypeError for a network that is not of diffusers.
    """
    if not hasattr(model, "save_pretrained"):
        raise TypeError(f"{type(model).__name__} is not a network of diffusers; load_model(run) reads any other")
    if isinstance(model, _Student) or not (inserted_blocks(model) or model.config.get("derived")):  # type: ignore
        return model
    twin: Any = copy.copy(model)
    twin.__class__ = _student_of(twin.__class__)
    return twin


class _Student:
    """What a student's class does otherwise than the diffusers class it is made from."""

    base: Any

    def save_pretrained(self: Any, folder: Any, variant: str | None = None, **kwargs: Any) -> None:
        records = []
        for layer, side, block in inserted_blocks(self):
            record = describe_block(block)
            if record is None:
                name = type(block).__name__
                raise ValueError(f"{name} cannot be saved; save the network first and work in place after loading")
            records.append({"layer": layer, "side": side, **record})
        named = copy.copy(self)  # the config is exchanged as a whole, so the caller's stays as it is
        named.register_to_config(red_blocks=records)
        self.base.save_pretrained(named, folder, variant=_own(variant), **kwargs)

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> Any:
        # Strides can only be moved in a network that is there, not in one of low_cpu_mem_usage, which has no weights.
        wanted = {"variant": _own(kwargs.get("variant")), "low_cpu_mem_usage": False, "use_safetensors": True}
        load = cls.base.from_pretrained.__func__
        model, found = load(cls, folder, **{**kwargs, **wanted, "output_loading_info": True})
        _check_loaded(found, folder)
        return (model, found) if kwargs.get("output_loading_info") else model

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        told = {**config, "_class_name": cls.base.__name__}
        derived, blocks = told.pop("derived", []), told.pop("red_blocks", [])
        with torch.random.fork_rng(devices=[]):  # weights about to be replaced cost the caller no random numbers
            model = cls.base.from_config(told, **kwargs)
            for step in derived:
                x, t = torch.zeros(1, model.config.in_channels, *step["image_size"]), torch.zeros(1).long()
                example = (x, t, t) if model.config.get("num_class_embeds") else (x, t)
                model, _ = derive_student(model, plan=step["plan"], downsampler=step["downsampler"], example=example)
            insert_blocks(model, map(restore_place, blocks))
        model.__class__ = cls
        return model


@lru_cache
def _student_of(base: Any) -> Any:
    return type(PREFIX + base.__name__, (_Student, base), {"__module__": __name__, "base": base})


def __getattr__(name: str) -> Any:
    """What a pipeline asks this module for when it loads a student: its class, and that it is a `ModelMixin`."""
    if name == "ModelMixin" or name.startswith(PREFIX):  # imports ask for other names, and diffusers takes a second
        import diffusers

        if base := getattr(diffusers, name.removeprefix(PREFIX), None):
            return base if name == "ModelMixin" else _student_of(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _own(variant: str | None) -> str:
    return VARIANT if variant in (None, VARIANT) else f"{variant.removesuffix('.' + VARIANT)}.{VARIANT}"


def _check_loaded(found: dict[str, Any], folder: Any) -> None:
    kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
    if wrong := [str(name) for kind in kinds for name in found[kind]]:
        raise ValueError(f"the weights in {folder} are not those of its config.json: {', '.join(wrong[:3])} differ")
