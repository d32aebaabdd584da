"""ReDistill Lab: what aggressive pooling saves, what it costs, and what residual encoded distillation brings back.

Names are imported on first use, so that ``import redistill_lib`` costs little more than Python itself.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "StridePlan": "plans",
    "create_model": "models",
    "example_inputs": "models",
    "list_models": "models",
    "student_name": "models",
    "load_checkpoint": "models",
    "RedBlock": "red",
    "alignment_loss": "red",
    "Tap": "distill",
    "match_taps": "distill",
    "read_taps": "distill",
    "find_resolutions": "network",
    "record_maps": "network",
    "derive_student": "student",
    "stream_rows": "streaming",
    "merge_tokens": "merging",
    "Distillation": "distill",
    "Objective": "distill",
    "load_data": "data",
    "as_batch": "data",
    "to_float": "data",
    "DiffusionRecipe": "train",
    "Recipe": "train",
    "RunOptions": "train",
    "STL10": "train",
    "train_classifier": "train",
    "distill_classifier": "train",
    "evaluate": "train",
    "load_runs": "runs",
    "published": "shipped",
    "measured": "shipped",
    "load_model": "models.saved",
    "resolve_model": "own",
    "student_of": "own",
    "record": "sweep.rows",
    "profile_memory": "memory",
    "measure_memory": "memory",
    "export_model": "export",
    "load_exported": "export",
    "measure_runtime": "export",
    "memory_bounds": "memory",
    "fit_to_budget": "budget",
    "tap_costs": "costs",
    "Target": "fitting",
    "fit_to_device": "fitting",
    "ways_to_fit": "fitting",
    "Arm": "comparison",
    "arms_at_peak": "comparison",
    "Budget": "comparison",
    "compare": "comparison",
    "score_images": "quality",
    "train_diffusion": "train",
    "distill_diffusion": "train",
    "sample": "diffusion",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from redistill_lib.budget import fit_to_budget
    from redistill_lib.comparison import Arm, Budget, arms_at_peak, compare
    from redistill_lib.costs import tap_costs
    from redistill_lib.data import as_batch, load_data
    from redistill_lib.data.augment import to_float
    from redistill_lib.diffusion import sample
    from redistill_lib.distill import Distillation, Objective, Tap, match_taps, read_taps
    from redistill_lib.export import export_model, load_exported, measure_runtime
    from redistill_lib.fitting import Target, fit_to_device, ways_to_fit
    from redistill_lib.memory import measure_memory, memory_bounds, profile_memory
    from redistill_lib.merging import merge_tokens
    from redistill_lib.models import create_model, example_inputs, list_models, load_checkpoint, student_name
    from redistill_lib.models.saved import load_model
    from redistill_lib.network import find_resolutions, record_maps
    from redistill_lib.own import resolve_model, student_of
    from redistill_lib.plans import StridePlan
    from redistill_lib.quality import score_images
    from redistill_lib.red import RedBlock, alignment_loss
    from redistill_lib.runs import load_runs
    from redistill_lib.shipped import measured, published
    from redistill_lib.streaming import stream_rows
    from redistill_lib.student import derive_student
    from redistill_lib.sweep.rows import record
    from redistill_lib.train import (
        STL10,
        DiffusionRecipe,
        Recipe,
        RunOptions,
        distill_classifier,
        distill_diffusion,
        evaluate,
        train_classifier,
        train_diffusion,
    )


def __getattr__(name: str) -> Any:
    if name in _rooms():
        return import_module(f"redistill_lib.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'redistill_lib' has no attribute {name!r}")
    value = getattr(import_module(f"redistill_lib.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_rooms()})


def _rooms() -> list[str]:
    return [found.name for found in iter_modules(__path__)]
