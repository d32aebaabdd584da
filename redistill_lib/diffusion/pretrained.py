"""Students of diffusers networks in diffusers' own format: a folder with config.json and safetensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from redistill_lib.red import RedBlock, insert_blocks, inserted_blocks
from redistill_lib.student import derive_student

VARIANT = "redistill"


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a diffusers network, derived or not, with RED blocks or without, as its own `save_pretrained` does.

    The config also says how the student was derived and where its blocks are, which `load_pretrained` needs. Since
    diffusers alone would build the teacher's layers, such weights are of the variant "redistill", which it does not
    take for its own.

    Raises TypeError for a network that is not of diffusers, ValueError for blocks in place.

    >>> save_pretrained(model, "student/unet"); model = load_pretrained("student/unet")        # doctest: +SKIP
    """
    if not callable(getattr(model, "save_pretrained", None)):
        raise TypeError(
            f"{type(model).__name__} is not a network of diffusers; for any other load_model(run) is the way back"
        )
    blocks = inserted_blocks(model)
    if other := [type(block).__name__ for _, _, block in blocks if type(block) is not RedBlock]:
        raise ValueError(f"{other[0]} cannot be saved; save the network first and work in place after loading")
    record = [
        {"layer": layer, "side": side, "channels": block.channels, "kernel_size": block.kernel_size}
        for layer, side, block in blocks
        if isinstance(block, RedBlock)
    ]
    named: Any = copy.copy(model)  # the config is exchanged as a whole, so the caller's stays as it is
    if record:
        named.register_to_config(red_blocks=record)
    named.save_pretrained(folder, variant=VARIANT if record or named.config.get("derived") else None)


def load_pretrained(folder: str | Path) -> nn.Module:
    """The network that `save_pretrained` wrote, in eval mode; for inference, as a teacher, or for a pipeline:
    ``DDPMPipeline(load_pretrained(folder), scheduler)``.

    Raises FileNotFoundError where the folder has no config.json.
    """
    import diffusers

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; name the folder that save_pretrained wrote "
            "(networks on the hub: UNet2DModel.from_pretrained)"
        )
    config: dict[str, Any] = dict(diffusers.UNet2DModel.load_config(folder))
    derived, blocks = config.pop("derived", []), config.pop("red_blocks", [])
    with torch.random.fork_rng(devices=[]):  # weights about to be replaced cost the caller no random numbers
        model = getattr(diffusers, config["_class_name"]).from_config(config)
        for step in derived:
            x = torch.zeros(1, model.config.in_channels, *step["image_size"])
            t = torch.zeros(1, dtype=torch.int64)
            example = (x, t, t) if model.config.get("num_class_embeds") else (x, t)
            model, _ = derive_student(model, plan=step["plan"], downsampler=step["downsampler"], example=example)
        insert_blocks(model, [(b["layer"], b["side"], RedBlock(b["channels"], b["kernel_size"])) for b in blocks])
    variant = f".{VARIANT}" if derived or blocks else ""
    model.load_state_dict(load_file(folder / f"diffusion_pytorch_model{variant}.safetensors"))
    return model.eval()
