"""Trained networks for others: one class in one file per format, entered in one table."""

from isnet.export.base import Exported, ExportError, ExportFormat
from isnet.export.monai_bundle import MonaiBundle
from isnet.export.onnx import Onnx
from isnet.export.run import Parity, export_run
from isnet.export.state_dict import StateDict
from isnet.export.torch_export import TorchExport
from isnet.export.torchscript import TorchScript

# By the names that ``isnet export --format`` takes.
FORMATS: dict[str, ExportFormat] = {
    "onnx": Onnx(),
    "torchscript": TorchScript(),
    "torch-export": TorchExport(),
    "state-dict": StateDict(),
    "monai-bundle": MonaiBundle(),
}

__all__ = ["FORMATS", "ExportError", "ExportFormat", "Exported", "Parity", "export_run"]
