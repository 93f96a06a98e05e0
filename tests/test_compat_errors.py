"""lrpkernels.compat.cam, crp, quantus and lxt, isnet.faster_isnet: wrong arguments have an error of one line that names them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isnet.faster_isnet import load_weights
from isnet.training.checkpoints import CheckpointError
from lrpkernels.compat.cam import LRPCAM, ClassifierOutputTarget
from lrpkernels.compat.crp import CondAttribution
from lrpkernels.compat.lxt import monkey_patch
from lrpkernels.compat.quantus import explain

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def _cam(targets: Any) -> Any:
    return LRPCAM(_net())(X, targets)


def _crp(conditions: Any, data: Any = X, **options: Any) -> Any:
    return CondAttribution(_net())(data, conditions, **options)


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "cam class": (lambda: _cam([ClassifierOutputTarget(4)] * 2), IndexError, "category 4 is out of range, the model has 4 classes"),
    "cam ints": (lambda: _cam([1, 2]), TypeError, "targets: expected callables such as .*, got int 1"),
    "cam vectors": (lambda: _cam([lambda output: output] * 2), ValueError, r"targets: a target returns one number .*, got shape \(4,\)"),
    "cam floats": (lambda: _cam([lambda output: 1.0] * 2), ValueError, "targets: a target returns one number .*, got float"),
    "crp dict": (lambda: _crp({"y": [1]}), TypeError, "conditions: expected a list of dicts, .* got a dict"),
    "crp texts": (lambda: _crp(["y"]), TypeError, "conditions: expected a list of dicts, .* got others"),
    "crp class": (lambda: _crp([{"y": [4]}]), ValueError, r"conditions: the model has 4 classes, got \[4\]"),
    "crp array": (lambda: _crp([{"y": [1]}], X.numpy()), TypeError, "data: expected a tensor of images .*, got ndarray"),
    "crp batch": (
        lambda: list(CondAttribution(_net()).generate(X[:1], [{"y": [1]}], batch_size=0)), ValueError, "batch_size: expected a pos",
    ),
    "quantus texts": (lambda: explain(_net(), X.numpy(), ["a", "b"]), TypeError, "targets: expected an array .*, got list"),  # type: ignore[arg-type]
    "quantus inputs": (lambda: explain(_net(), "abc", [1]), TypeError, "inputs: expected an array or tensor of numbers, got str"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, kind, text = WRONG[name]
    with pytest.raises(kind, match=text) as error:
        call()
    assert "\n" not in str(error.value)


def test_negative_classes_count_from_the_end() -> None:
    assert np.array_equal(_cam([ClassifierOutputTarget(-1)] * 2), _cam([ClassifierOutputTarget(3)] * 2))


def test_one_recorded_layer_may_be_named_alone() -> None:
    model = nn.Sequential()
    model.add_module("features", _net()[:2])
    model.add_module("head", _net()[2:])
    attribution = CondAttribution(model)
    alone, listed = (attribution(X[:1], [{"y": [1]}], record_layer=named) for named in ("features.0", ["features.0"]))
    assert list(alone.relevances) == ["features.0"]
    assert torch.equal(alone.relevances["features.0"], listed.relevances["features.0"])


def test_a_patched_model_can_be_copied() -> None:
    model = _net()
    patched = monkey_patch(model)
    assert repr(patched).startswith("ModifiedModel(Sequential, Composite(")
    copied = copy.deepcopy(model)
    gradients = []
    for each in (model, copied):
        x = X.clone().requires_grad_()
        each(x)[:, 1].sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
    patched.remove()
    assert "forward" not in vars(model) and "forward" in vars(copied)


@pytest.mark.parametrize("content", [b"hello", b"", b"\x80\x02}q\x00.", b"PK\x03\x04 no zip", bytes(range(256))])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt: ") as error:
        load_weights(_net(), path)
    assert "\n" not in str(error.value)
