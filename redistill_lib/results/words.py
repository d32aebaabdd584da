"""How results are put in words: the names of roles, numbers, lists."""

from __future__ import annotations

from collections.abc import Iterable

_LABELS = {"teacher": "teacher", "student": "naive student", "red-blocks": "RED blocks, no loss"}
_PARTS = {"red-blocks": "RED blocks", "red": "RED", "kd": "KD", "mse": "MSE", "stage": "STAGE"}


def role_key(role: str) -> str:
    """One spelling per role: ``naive`` is the undistilled ``student``, and ``kd+red`` is ``red+kd``.

    >>> role_key("KD+RED"), role_key("naive")
    ('red+kd', 'student')
    """
    role = role.strip().lower()
    if role in ("naive", "naive student", "none", "baseline"):
        return "student"
    return "+".join(sorted((part.strip() for part in role.split("+")), key=lambda p: (not p.startswith("red"), p)))


def label(role: str) -> str:
    """The role as a reader calls it.

    >>> label("student"), label("red+kd"), label("red-blocks"), label("untrained")
    ('naive student', 'RED + KD', 'RED blocks, no loss', 'untrained')
    """
    key = role_key(role)
    if key in _LABELS:
        return _LABELS[key]
    parts = key.split("+")
    return " + ".join(_PARTS.get(part, part) for part in parts) if _PARTS.keys() & set(parts) else role


def the(role: str) -> str:
    """The role inside a sentence.

    >>> the("naive"), the("red")
    ('the naive student', 'RED')
    """
    name = label(role)
    return f"the {name}" if name in ("teacher", "naive student") else name


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign.

    >>> number(-0.461), number(-0.0001)
    ('−0.46', '0.00')
    """
    return f"{value:z.{digits}f}".replace("-", "−")


def capital(text: str) -> str:
    """The text as a sentence begins: unlike `str.capitalize`, all but its first letter stays as it is."""
    return text[0].upper() + text[1:]


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
