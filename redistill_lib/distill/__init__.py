"""Distilling a student at taps."""

from redistill_lib.distill.distillation import Distillation
from redistill_lib.distill.pairing import match_taps
from redistill_lib.distill.taps import Tap, read_taps
from redistill_lib.distill.teachers import LiveTeacher, Teacher
from redistill_lib.distill.terms import Objective

__all__ = ["Distillation", "LiveTeacher", "Objective", "Tap", "Teacher", "match_taps", "read_taps"]
