"""Distilling a student at taps."""

from redistill_lib.distill.distillation import Distillation
from redistill_lib.distill.pairing import match_taps
from redistill_lib.distill.taps import Tap, read_taps

__all__ = ["Distillation", "Tap", "match_taps", "read_taps"]
