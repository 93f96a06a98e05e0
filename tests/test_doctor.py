"""``lrpkernels doctor``: right kernels pass, a wrong one is found, and CUDA kernels that were not run are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_emulated_ops import load_emulated_ops
from typer.testing import CliRunner

from lrpkernels.__main__ import app
from lrpkernels.tools import doctor

FEW = ("ratio", "average_pool", "sum_zplus", "conv_apply")  # the last has no CPU kernel


def test_the_cpu_kernels_pass() -> None:
    found = doctor.diagnose(kernels=FEW, devices=["cpu"])
    assert found.passed and len(found.checks) == 3 * 3
    assert all(check.samples > 20 and 0 <= check.max_error < 1e-2 for check in found.checks)
    assert {check.dtype for check in found.checks} == {"float32", "float64", "bfloat16"}


def test_the_emulated_kernels_pass_in_every_dtype() -> None:
    load_emulated_ops()
    found = doctor.diagnose(torch.ops.lrpkernels_emulated, ["cpu"], ("ratio", "max_pool_winner"))
    assert found.passed and len(found.checks) == 2 * 4


class _Broken:
    """torch.ops.lrpkernels with one op replaced."""

    def __init__(self, name: str, op: Any) -> None:
        self._name, self._op = name, op

    def __getattr__(self, name: str) -> Any:
        return self._op if name == self._name else getattr(torch.ops.lrpkernels, name)


@pytest.mark.parametrize("factor", [1 + 1e-5, -1.0, float("nan")])
def test_a_wrong_kernel_is_found(factor: float) -> None:
    broken = _Broken("ratio", lambda *args: torch.ops.lrpkernels.ratio(*args) * factor)
    found = doctor.diagnose(broken, ["cpu"], ("ratio",))
    wrong = {check.dtype for check in found.checks if not check.passed}
    assert not found.passed and {"float32", "float64"} <= wrong


def test_a_kernel_that_raises_is_found_and_its_error_told() -> None:
    def failing(*arguments: Any) -> Any:
        raise RuntimeError("ratio failed with CUDA error 209")

    found = doctor.diagnose(_Broken("ratio", failing), ["cpu"], ("ratio",))
    assert not found.passed and "CUDA error 209" in (found.checks[0].failure or "")


@pytest.mark.parametrize(
    ("built", "torch_cuda", "gpu", "text"),
    [
        (False, None, False, "CUDA kernels are not built in"),
        (True, None, False, "built in but were NOT run: this torch has no CUDA"),
        (True, "13.0", False, "built in but were NOT run: torch finds no GPU"),
        (True, "13.0", True, "built in but were NOT run: only the CPU was asked for"),
    ],
)
def test_says_plainly_what_was_not_run(
    built: bool, torch_cuda: str | None, gpu: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "has_cuda_kernels", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert text in doctor.diagnose(kernels=("ratio",), devices=["cpu"]).cuda


def test_the_command_prints_a_table_and_fails_when_a_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    few = doctor.diagnose(kernels=("ratio",), devices=["cpu"])
    broken = _Broken("ratio", lambda *args: torch.ops.lrpkernels.ratio(*args) * 2)
    wrong = doctor.diagnose(broken, ["cpu"], ("ratio",))
    monkeypatch.setattr(doctor, "diagnose", lambda **_: few)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0 and "ratio" in result.stdout and "All kernels that ran are right" in result.stdout
    machine = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert machine["passed"] and [check["kernel"] for check in machine["checks"]] == ["ratio"] * 3
    monkeypatch.setattr(doctor, "diagnose", lambda **_: wrong)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "WRONG" in result.stdout and "times the error" in result.stdout
