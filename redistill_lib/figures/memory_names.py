"""How memory figures name things: layers, RED blocks, shapes, amounts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from redistill_lib.memory import Profile, Row

TICK = 16  # characters of a name on an axis


def unit_of(nbytes: float) -> tuple[str, int]:
    """The unit of an axis that reaches to so many bytes.

    >>> unit_of(3 * 2**20), unit_of(900_000)
    (('MiB', 1048576), ('KiB', 1024))
    """
    return ("MiB", 2**20) if nbytes >= 2**20 else ("KiB", 2**10)


def is_red(row: Row) -> bool:
    """Whether the step belongs to a RED block, which `insert_blocks` puts ``before`` or ``after`` a layer."""
    return bool(red_place(row)[1])


def block_names(rows: Sequence[Row]) -> list[str]:
    """The layer of the network that each row belongs to: ``layer1.0`` for ``layer1.0.conv2`` and its RED blocks.

    What is computed outside any module, as the concatenations of a U-Net, belongs to the layer that follows.

    >>> rows = [Row("op", path, (), 0, 0, 0, 0) for path in ("conv1", "", "up.0.a", "tail.2")]
    >>> block_names(rows)
    ['conv1', 'up.0', 'up.0', 'tail']
    """
    own = [row.module.split(".") for row in rows if row.module and not is_red(row)]
    inside: dict[str, list[list[str]]] = {}
    for path in own:
        inside.setdefault(path[0], []).append(path[1:])
    flat = {  # a short sequence of single operators is one layer: the head of a classifier, the tail of a U-Net
        first
        for first, rest in inside.items()
        if len(inside) > 1 and len({path[0] for path in rest if path}) <= 3 and max(map(len, rest)) < 2
    }
    names: list[str] = []
    following = ""
    for row in reversed(rows):
        first, *rest = row.module.split(".")
        deeper = rest[:1] if rest and rest[0].isdigit() and first not in flat else []
        following = ".".join([first, *deeper]) or following
        names.append(following)
    names.reverse()
    last = next((name for name in reversed(names) if name), "")
    return [name or last or row.op for name, row in zip(names, rows, strict=True)]


def place_of(row: Row) -> str:
    """What a reader calls the place of a step: its module, or the RED block that it belongs to.

    >>> place_of(Row("conv", "conv1.after.logit.0", (), 0, 0, 0, 0))
    'the RED block after conv1'
    """
    layer, side = red_place(row)
    return f"the RED block {side} {layer}" if side else layer_name(short(row.name, 36))


def layer_name(path: str) -> str:
    """A bare number, as the layers of a sequence have it, is told to be a layer's.

    >>> layer_name("3"), layer_name("conv1")
    ('layer 3', 'conv1')
    """
    return f"layer {path}" if path.isdigit() else path


def red_place(row: Row) -> tuple[str, str]:
    """The layer that carries the RED block of this step, and the side on which it does; "" outside RED blocks."""
    parts = row.module.split(".")
    where = next((n for n, part in enumerate(parts) if part in ("before", "after")), len(parts))
    return ".".join(parts[:where]), parts[where] if where < len(parts) else ""


def shape_of(shape: Sequence[int]) -> str:
    """Channels × height × width; the batch only where it is more than one image.

    >>> shape_of((1, 64, 8, 8)), shape_of((4, 64))
    ('64×8×8', '4×64')
    """
    return "×".join(map(str, shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape))


def short(name: str, most: int) -> str:
    """A module's path with its middle left out where it is too long.

    >>> short("conv1.after.residual_encoder.0", 20)
    'conv1.af…l_encoder.0'
    """
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"


def below_ticks(names: Iterable[str]) -> int:
    """Pixels that an axis needs below the plot for names at a slant, and its title."""
    return 56 + 6 * min(TICK, max(len(re.sub("<.*?>", "", name)) for name in names))


def setting(profile: Profile) -> str:
    """The model, its input and how its memory is counted: what every number here depends on."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in profile.inputs)
    return f"{profile.model} on {shapes}, {profile.dtype}, {profile.convention} convention"


def ratio(reference: float, value: float) -> str:
    """How much less, or more, than a reference: "6.7× less than".

    >>> ratio(10, 4), ratio(4, 5), ratio(1000, 999)
    ('2.5× less than', '1.25× more than', 'about as much as')
    """
    times = max(reference, value) / min(reference, value)
    if times < 1.005:
        return "about as much as"
    digits = 2 if times < 1.995 else 1
    return f"{times:.{digits}f}× {'less' if value < reference else 'more'} than"


def red_runs(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """First step of each RED block, and the step after its last."""
    runs: list[tuple[int, int]] = []
    for k, row in enumerate(rows):
        if not is_red(row):
            continue
        if k and red_place(row) == red_place(rows[k - 1]):
            runs[-1] = (runs[-1][0], k + 1)
        else:
            runs.append((k, k + 1))
    return runs
