"""ONNX, for ONNX Runtime and the many that read it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from isnet.export.base import Answering, Exported, ExportFormat, quiet

_FILE = "model.onnx"
_LARGEST = 1_900_000_000  # bytes of weights in one file, whose format ends at 2 GiB


class Onnx(ExportFormat):
    """``model.onnx``: input ``images``, output ``logits``, any number of images; classes and preprocessing in its metadata."""

    extra = "onnx onnxruntime onnxscript"
    usage = """import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {"images": images.numpy()})[0]"""

    def write(self, what: Exported, folder: Path) -> None:
        import onnx
        import onnxscript  # noqa: F401 (its absence is told before the work begins)

        size = sum(value.numel() * value.element_size() for value in what.model.state_dict().values())
        with quiet():
            torch.onnx.export(
                what.model,
                (what.example,),
                str(folder / _FILE),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=size > _LARGEST,
                verbose=False,
            )
        proto = onnx.load(str(folder / _FILE), load_external_data=False)
        facts = {"classes": json.dumps(what.classes), "preprocessing": json.dumps(what.preprocessing)}
        for key, value in facts.items():
            proto.metadata_props.add(key=key, value=value)
        (folder / _FILE).write_bytes(proto.SerializeToString())

    def load(self, what: Exported, folder: Path) -> Answering:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / _FILE), providers=["CPUExecutionProvider"])

        def answer(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

        return answer
