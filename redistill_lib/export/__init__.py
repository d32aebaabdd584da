"""Networks as files for edge runtimes, and what these really need.

Names are imported on first use: the process that measures a file waits for none of what others need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Deployed": "deployment",
    "Deployment": "deployment",
    "deploy": "deployment",
    "ExportedModel": "exported",
    "load_exported": "exported",
    "FORMATS": "formats",
    "measure_runtime": "measure",
    "export_model": "model",
    "portable": "model",
    "bf16_model": "precision",
    "int8_model": "precision",
    "precisions": "precision",
    "Export": "result",
    "RuntimePeak": "result",
}
__all__ = [*_HOMES]

if TYPE_CHECKING:
    from redistill_lib.export.deployment import Deployed, Deployment, deploy
    from redistill_lib.export.exported import ExportedModel, load_exported
    from redistill_lib.export.formats import FORMATS
    from redistill_lib.export.measure import measure_runtime
    from redistill_lib.export.model import export_model, portable
    from redistill_lib.export.precision import bf16_model, int8_model, precisions
    from redistill_lib.export.result import Export, RuntimePeak


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
