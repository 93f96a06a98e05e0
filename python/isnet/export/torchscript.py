"""TorchScript, for C++ and Python without the network's code."""

from __future__ import annotations

from pathlib import Path

import torch

from isnet.export.base import Answering, Exported, ExportFormat, quiet

_FILE = "model.ts"


class TorchScript(ExportFormat):
    """``model.ts``: a traced module."""

    usage = """import torch
model = torch.jit.load("model.ts")
logits = model(images)"""

    def write(self, what: Exported, folder: Path) -> None:
        with torch.no_grad(), quiet():
            traced = torch.jit.trace(what.model, what.example, check_trace=False)
            torch.jit.save(traced, str(folder / _FILE))

    def load(self, what: Exported, folder: Path) -> Answering:
        with quiet():
            return torch.jit.load(str(folder / _FILE))
