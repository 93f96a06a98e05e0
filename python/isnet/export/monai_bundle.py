"""A MONAI bundle: network, weights and preprocessing in MONAI's own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from isnet._files import write_json
from isnet.export.base import Answering, Exported, ExportError, ExportFormat, quiet

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=WARNING
handlers=console

[handler_console]
class=StreamHandler
level=WARNING
formatter=plain
args=(sys.stderr,)

[formatter_plain]
format=%(levelname)s %(message)s
"""


class MonaiBundle(ExportFormat):
    """A folder with ``configs/``, ``models/model.pt``, ``scripts/`` and ``docs/``, which :func:`monai.bundle.load` reads."""

    extra = "monai"
    usage = """import pathlib, monai.bundle          # from within the folder of the bundle
here = pathlib.Path.cwd()
model = monai.bundle.load(here.name, bundle_dir=here.parent, workflow_type="inference")
logits = model.eval()(images)"""
    card = "docs/README.md"
    preprocessing = "scripts/preprocessing.json"
    code = "scripts/preprocess.py"

    def write(self, what: Exported, folder: Path) -> None:
        import monai

        if what.target is None:
            raise ExportError(
                f"monai-bundle: a bundle names its network by an importable module, and {what.source} is a file; put it into a package, or "
                "export onnx, torchscript, torch-export or state-dict"
            )
        for name in ("configs", "models", "scripts", "docs"):
            (folder / name).mkdir()
        (folder / "scripts" / "__init__.py").touch()
        torch.save(what.model.state_dict(), folder / "models" / "model.pt")
        write_json(folder / "configs" / "inference.json", self._inference(what))
        write_json(folder / "configs" / "metadata.json", self._metadata(what, monai.__version__))
        (folder / "configs" / "logging.conf").write_text(_LOGGING)
        (folder / "LICENSE").write_text("To be filled in by the owner of the model.\n")

    def load(self, what: Exported, folder: Path) -> Answering:
        import monai.bundle

        with quiet():
            model: Any = monai.bundle.load(
                folder.name, bundle_dir=folder.parent, workflow_type="inference", device="cpu"
            )
        model.eval()
        return torch.no_grad()(model)

    def _inference(self, what: Exported) -> dict[str, Any]:
        return {
            "bundle_root": ".",
            "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
            "imports": ["$import torch", "$import glob"],
            "pattern": "images/*.png",
            "images": "$sorted(glob.glob(@pattern, recursive=True))",
            "network_def": {"_target_": what.target, **what.arguments},
            "network": "$@network_def.to(@device).eval()",
            "checkpoint": "$@bundle_root + '/models/model.pt'",
            # Not under "initialize", which monai.bundle.load runs too, from any folder.
            "run": [
                "$@network.load_state_dict(torch.load(@checkpoint, map_location=@device, weights_only=True))",
                {"_target_": "scripts.preprocess.print_answers", "model": "@network", "paths": "@images"},
            ],
        }

    def _metadata(self, what: Exported, version: str) -> dict[str, Any]:
        channels, height, width = what.example.shape[1:]
        low, high = what.preprocessing["range"]
        flat = [*(low if isinstance(low, list) else [low]), *(high if isinstance(high, list) else [high])]
        common = {"num_spatial_dims": 2, "dtype": "float32", "is_patch_data": False}
        return {
            "schema": _SCHEMA,
            "version": "0.1.0",
            "changelog": {"0.1.0": "exported"},
            "monai_version": version,
            "pytorch_version": torch.__version__.partition("+")[0],
            "numpy_version": _numpy_version(),
            "required_packages_version": {},
            "name": what.title,
            "task": "image classification",
            "description": f"Classifier of images into {', '.join(what.classes)}.",
            "authors": "",
            "copyright": "",
            "network_data_format": {
                "inputs": {
                    "image": {
                        **common,
                        "type": "image",
                        "format": "magnitude",
                        "num_channels": channels,
                        "spatial_shape": [height, width],
                        "value_range": [min(flat), max(flat)],
                        "channel_def": {str(i): f"channel {i}" for i in range(channels)},
                    }
                },
                "outputs": {
                    "pred": {
                        **common,
                        "type": "probabilities",
                        "format": "classes",
                        "num_channels": len(what.classes),
                        "spatial_shape": [],
                        "value_range": [],
                        "channel_def": {str(i): name for i, name in enumerate(what.classes)},
                    }
                },
            },
        }


def _numpy_version() -> str:
    import numpy

    return numpy.__version__
