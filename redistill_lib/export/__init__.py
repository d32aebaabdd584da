"""Networks as files for edge runtimes, and what these really need."""

from redistill_lib.export.deploy import Deployed, Deployment, deploy
from redistill_lib.export.exported import ExportedModel, load_exported
from redistill_lib.export.formats import FORMATS
from redistill_lib.export.measure import measure_runtime
from redistill_lib.export.model import export_model, portable
from redistill_lib.export.precision import bf16_model, int8_model, precisions
from redistill_lib.export.result import Export, RuntimePeak

__all__ = [
    "FORMATS",
    "Deployed",
    "Deployment",
    "Export",
    "ExportedModel",
    "RuntimePeak",
    "bf16_model",
    "deploy",
    "export_model",
    "int8_model",
    "load_exported",
    "measure_runtime",
    "portable",
    "precisions",
]
