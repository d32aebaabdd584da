"""The look of each way of teaching: one colour and one marker in all figures and pages. No torch, no plotly."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

from redistill_lib.results import role_key

# Colour and marker: colour is never alone. Colours differ in lightness as well as hue, for the common colour
# blindnesses and for grey.
_LOOKS = {
    "teacher": ("#1F2328", "circle"),
    "student": ("#8A8F98", "circle"),
    "untrained": ("#5E6BD8", "star-diamond"),
    "kd": ("#0072B2", "square"),
    "red": ("#CC4C00", "diamond"),
    "red+kd": ("#7A1F5C", "star"),
    "red+mse": ("#332288", "cross"),
    "red-blocks": ("#E6B03C", "hexagon"),
    "red-blocks+kd": ("#56B4E9", "pentagon"),
    "red-loss+kd": ("#AA4499", "octagon"),
    # What activations are stored as, which no figure has beside methods.
    "fp32": ("#332288", "circle"),
    "fp16": ("#88672F", "square"),
    "bf16": ("#C77CB5", "triangle-up"),
    "int8": ("#1B9E77", "diamond"),
}
# Other methods share six colours; those of one marker stay apart for every eye.
_GREEN, _TEAL, _OLIVE, _PURPLE, _BLUE, _BROWN = SPARE = (
    "#117733", "#44AA99", "#999933", "#AA4499", "#5E6BD8", "#88672F",
)  # fmt: skip
for _symbol, _methods in {
    "triangle-up": {"deit": _GREEN, "locality": _BLUE},
    "triangle-down": {"dkd": _TEAL, "ls-kd": _BLUE, "mse": _BROWN},
    "hexagram": {"dist": _GREEN, "mlld": _PURPLE, "crd": _OLIVE},
    "x": {"sp": _TEAL, "pkt": _BROWN, "rkd": _BLUE},
    "hourglass": {"cc": _TEAL, "stage": _PURPLE, "red-loss": _GREEN},
    "star-square": {"fitnet": _BLUE, "at": _OLIVE, "nst": _TEAL},
    "triangle-right": {"vid": _BROWN, "ft": _TEAL, "ab": _BLUE},
    "diamond-wide": {"reviewkd": _PURPLE, "srd": _OLIVE},
}.items():
    _LOOKS |= {_method: (_tone, _symbol) for _method, _tone in _methods.items()}
# Further ones, for figures in which two methods of one colour meet.
_MORE = (
    *SPARE, "#332288", "#E6B03C", "#56B4E9", "#D2827E", "#6B8E23", "#00A0A0", "#A05A2C", "#B8A0D8",
)  # fmt: skip


def dark_figures(where: str = "") -> str:
    """A rule of CSS that shows plotly's figures `where` in the dark: lightness is turned round, hues and images stay.

    >>> dark_figures()
    '.main-svg, .main-svg image { filter: invert(.93) hue-rotate(180deg); }'
    """
    svg = f"{where} .main-svg".strip()
    return f"{svg}, {svg} image {{ filter: invert(.93) hue-rotate(180deg); }}"  # images twice: as they were


def color(role: str) -> str:
    """The role's colour, the same in every figure; where it has none, one that follows from its name."""
    return look(role)[0]


def look(role: str) -> tuple[str, str]:
    """The role's colour and marker, those of its methods whatever their options; where it has none, a left triangle,
    which no method has.

    >>> look("red(alpha=0.5) + kd") == look("kd+red")
    True
    """
    key = _methods_of(role)
    return _LOOKS.get(key) or (SPARE[zlib.crc32(key.encode()) % len(SPARE)], "triangle-left")


def _methods_of(role: str) -> str:
    """The names of its methods, without their options: two of one method with other options are two roles still."""
    return role_key(re.sub(r"\([^()]*=[^()]*\)", "", role))


def colors(roles: Iterable[str]) -> dict[str, str]:
    """A colour for each role of one figure that no other of them has: its own, unless one before it has that; those
    of unknown names come last.

    >>> colors(["red", "mine", "dkd", "nst"])
    {'red': '#CC4C00', 'dkd': '#44AA99', 'nst': '#117733', 'mine': '#999933'}
    """
    found: dict[str, str] = {}
    for role in sorted(dict.fromkeys(roles), key=lambda role: _methods_of(role) not in _LOOKS):
        own = color(role)
        found[role] = next((tone for tone in (own, *_MORE) if tone not in found.values()), own)
    return found
