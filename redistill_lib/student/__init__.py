"""Aggressive pooling for any network: move its stride to the front, and give it back later."""

from redistill_lib.network import Place
from redistill_lib.student.derive import derive_student, draw_weights
from redistill_lib.student.edits import Change
from redistill_lib.student.places import find_places

__all__ = ["Change", "Place", "derive_student", "draw_weights", "find_places"]
