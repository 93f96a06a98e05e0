"""The weights alone, and how to build the network that they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from isnet._files import write_json
from isnet.architectures import build_architecture
from isnet.export.base import Answering, Exported, ExportFormat

_FILE, _BUILD = "model.safetensors", "architecture.json"


class StateDict(ExportFormat):
    """``model.safetensors`` under the model's own names, and ``architecture.json``: its constructor and the arguments."""

    extra = "safetensors"
    usage = """import importlib, json, safetensors.torch
build = json.load(open("architecture.json"))
module, _, name = build["constructor"].rpartition(".")
model = getattr(importlib.import_module(module), name)(**build["arguments"])
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
logits = model.eval()(images)"""

    def write(self, what: Exported, folder: Path) -> None:
        # Clones: safetensors refuses tensors that share memory, as tied weights do.
        state = {name: value.detach().clone().contiguous() for name, value in what.model.state_dict().items()}
        safetensors.torch.save_file(state, folder / _FILE, metadata={"classes": json.dumps(what.classes)})
        build = {"constructor": what.target, "named": what.source, "arguments": dict(what.arguments)}
        write_json(folder / _BUILD, build)

    def load(self, what: Exported, folder: Path) -> Answering:
        build = json.loads((folder / _BUILD).read_text())
        model = build_architecture(
            build["named"],
            {
                key: value
                for key, value in build["arguments"].items()
                if key != "model_name" or not build["named"].startswith("timm:")
            },
            image_shape=(what.example.shape[1], what.example.shape[2], what.example.shape[3]),
            num_classes=len(what.classes),
            pretrained=False,
        )
        model.load_state_dict(safetensors.torch.load_file(folder / _FILE))
        model.eval()
        return torch.no_grad()(model)
