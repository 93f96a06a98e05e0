"""PyTorch's own exported programs, for ``torch.export.load`` and AOTInductor."""

from __future__ import annotations

from pathlib import Path

import torch

from isnet.export.base import Answering, Exported, ExportFormat, quiet

_FILE = "model.pt2"


class TorchExport(ExportFormat):
    """``model.pt2``: an exported program for any number of images."""

    usage = """import torch
model = torch.export.load("model.pt2").module()
logits = model(images)"""

    def write(self, what: Exported, folder: Path) -> None:
        with torch.no_grad(), quiet():
            program = torch.export.export(what.model, (what.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, folder / _FILE)

    def load(self, what: Exported, folder: Path) -> Answering:
        with quiet():
            return torch.export.load(folder / _FILE).module()
