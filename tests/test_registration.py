"""How the ops are registered: schemas, shape functions, compilation, error texts, the build report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

import lrpkernels as lrp
from lrpkernels.__main__ import app
from lrpkernels._extension import build_info, has_cuda_kernels
from lrpkernels.functional import ConvGeometry, ConvWeight, conv_apply, heatmap_scores
from lrpkernels.testing import CPU_OPS, OPS, samples

ops = torch.ops.lrpkernels
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("op", CPU_OPS)
def test_opcheck(op: str, layout: str) -> None:
    for sample in samples(op, layout=layout, targets=2, shapes=[(2, 3, 5, 7), (4, 3), (0, 3, 2, 2)]):
        if layout == "contiguous" and "(2, 3, 5, 7)" in sample.label:
            torch.library.opcheck(getattr(ops, op).default, sample.arguments, test_utils=OPCHECKS)
        else:
            torch.library.opcheck(getattr(ops, op).default, sample.arguments, test_utils=OPCHECKS[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", CPU_OPS)
def test_shape_functions_give_what_the_kernels_give(op: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last", "strided"):
        for sample in samples(op, dtype, layout, targets=2):
            real = getattr(ops, op)(*sample.arguments)
            with FakeTensorMode() as mode:
                arguments = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in sample.arguments]
                fake = getattr(ops, op)(*arguments)
            for r, f in zip(*((x if isinstance(x, tuple) else (x,)) for x in (real, fake)), strict=True):
                assert (r.shape, r.dtype) == (f.shape, f.dtype), sample.label
                if r.numel() > 0:
                    significant = [d for d in range(r.dim()) if r.shape[d] > 1]
                    assert [r.stride(d) for d in significant] == [f.stride(d) for d in significant], sample.label


def test_compiles_without_a_graph_break() -> None:
    def block(multiplier: Tensor, output: Tensor, scale: Tensor) -> Tensor:
        return ops.epsilon_scale(multiplier * 2, None, output, scale, 1e-2) + 1

    arguments = (torch.randn(4, 3, 5, 5), torch.rand(2, 3, 5, 5), torch.rand(3))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), block(*arguments), rtol=0, atol=0)


def _bad_calls() -> dict[str, tuple[Callable[[], object], str]]:
    g, u, k = torch.rand(8, 64, 4, 4), torch.rand(4, 64, 4, 4), torch.rand(64)
    scale = ops.epsilon_scale
    backward = ops.epsilon_scale_backward
    return {
        "addend shape": (
            lambda: scale(g, u, None, None, 0.1),
            "epsilon_scale: addend must have the multiplier's shape [8, 64, 4, 4], got [4, 64, 4, 4]",
        ),
        "addend dtype": (
            lambda: scale(g, g.double(), None, None, 0.1),
            "epsilon_scale: addend must have dtype float32, got float64",
        ),
        "output shape": (
            lambda: scale(g, None, u[:3], None, 0.1),
            "epsilon_scale: output must have shape [B, C, ...] for a multiplier [T * B, C, ...] = [8, 64, 4, 4], "
            "got [3, 64, 4, 4]",
        ),
        "output rank": (lambda: scale(g, None, u[0], None, 0.1), "got [64, 4, 4]"),
        "scale shape": (
            lambda: scale(g, None, u, k[:63], 0.1),
            "epsilon_scale: scale must have shape [C] = [64], got [63]",
        ),
        "scale dtype": (
            lambda: scale(g.bfloat16(), None, u.bfloat16(), k.bfloat16(), 0.1),
            "epsilon_scale: scale must have dtype float32, got bfloat16",
        ),
        "scale without channels": (
            lambda: scale(torch.rand(3), None, None, torch.rand(3), 0.1),
            "epsilon_scale: multiplier must have a channel dimension when scale is given, got shape [3]",
        ),
        "storage dtype": (
            lambda: scale(g.half(), None, None, None, 0.1),
            "epsilon_scale: multiplier must have dtype float32, float64 or bfloat16 on CPU, got float16",
        ),
        "integers": (lambda: scale(g.long(), None, None, None, 0.1), "on CPU, got Long"),
        "negative epsilon": (
            lambda: scale(g, None, u, k, -0.1),
            "epsilon_scale: epsilon must be finite and >= 0, got -0.1",
        ),
        "NaN epsilon": (lambda: scale(g, None, u, k, float("nan")), "epsilon must be finite and >= 0, got nan"),
        "grad shape": (
            lambda: backward(u, g, None, u, k, 0.1, True),
            "epsilon_scale_backward: grad must have the multiplier's shape [8, 64, 4, 4], got [4, 64, 4, 4]",
        ),
        "sums without a scale": (
            lambda: backward(g, g, None, u, None, 0.1, True),
            "epsilon_scale_backward: need_scale must be False when scale is None, got True",
        ),
        "denominator shape": (
            lambda: ops.ratio(g, u, g, 0.1),
            "ratio: denominator must have the shape of value [4, 64, 4, 4], got [8, 64, 4, 4]",
        ),
        "value shape": (lambda: ops.ratio(g, u[:, :3], u, 0.1), "ratio: value must have shape [B, C, ...]"),
        "epsilons shape": (
            lambda: scale(g, None, u, None, 0.0, torch.ones(3)),
            "epsilon_scale: epsilons must have shape [B] = [4], got [3]",
        ),
        "epsilons of targets": (
            lambda: ops.ratio(g, u, u, 0.0, torch.ones(8)),
            "ratio: epsilons must have shape [B] = [4], got [8]",
        ),
        "epsilons dtype": (
            lambda: ops.ratio_backward(g, g, u, u, 0.0, torch.ones(4, dtype=torch.float64)),
            "ratio_backward: epsilons must have dtype float32, got float64",
        ),
        "ratio grad": (lambda: ops.ratio_backward(u, g, u, u, 0.1), "ratio_backward: grad must have the multiplier's"),
        **_bad_heatmap_calls(),
        "average divisor": (
            lambda: ops.average_pool(g, [2, 2], [2, 2], [2, 2], [0, 0], True, -(2**63)),
            "average_pool: divisor_override must not be 0 and be below 2^30 in size, got -9223372036854775808",
        ),
        "shares": (
            lambda: ops.affine(g, u, u, k, None, float("nan"), 0.0, 0.1),
            "affine: whole must be finite, got nan",
        ),
        "a copy larger than memory": (
            lambda: scale(torch.ones(1, 1, 1, 1).expand(1, 2**24, 2**24, 1), None, None, None, 0.1),
            "lrpkernels: a tensor of shape [1, 16777216, 16777216, 1] could not be allocated on cpu",
        ),
    }


def _bad_heatmap_calls() -> dict[str, tuple[Callable[[], object], str]]:
    r, mask, nan = torch.rand(2, 3, 4, 5), torch.zeros(2, 4, 5), float("nan")
    order = ops.heatmap_scores(r, mask, 3, 0.5)[3]
    repeated, outside = order.clone(), order.clone()
    repeated[..., 1], outside[..., 1] = repeated[..., 0], 99
    sums, rows = torch.rand(2, 3), torch.rand(2, 3, 4)

    def backward(ranks: torch.Tensor, decay: float = 0.5) -> object:
        return ops.heatmap_scores_backward(r, mask, ranks, sums, sums, rows, decay)

    op = "heatmap_scores"
    return {
        "decay": (lambda: ops.heatmap_scores(r, mask, 3, 2.0), f"{op}: decay must lie in [0, 1], got 2.0"),
        "NaN decay": (lambda: ops.heatmap_scores(r, mask, 3, nan), f"{op}: decay must lie in [0, 1], got nan"),
        "decay of the function": (
            lambda: heatmap_scores(r, mask, decay=nan),
            f"{op}: decay must lie in [0, 1], got nan",
        ),
        "kept": (lambda: ops.heatmap_scores(r, mask, 9, 0.5), f"{op}: kept must be 0 to 5, got 9"),
        "mask shape": (
            lambda: ops.heatmap_scores(r, mask[:, :3], 3, 0.5),
            f"{op}: mask must have shape [B, 1 or C, N]",
        ),
        "mask dtype": (lambda: ops.heatmap_scores(r, mask.double(), 3, 0.5), f"{op}: mask must have dtype"),
        "backward decay": (lambda: backward(order, 2.0), f"{op}_backward: decay must lie in [0, 1], got 2.0"),
        "order dtype": (lambda: backward(order.long()), f"{op}_backward: order must have dtype int32"),
        "repeated ranks": (lambda: backward(repeated), f"{op}_backward: order must name each position of a row once"),
        "a rank outside": (lambda: backward(outside), f"{op}_backward: order must hold positions below 5 or -1, got"),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_errors_name_the_argument_what_was_expected_and_what_came(name: str) -> None:
    call, text = _bad_calls()[name]
    with pytest.raises(RuntimeError) as raised:
        call()
    assert text in str(raised.value)


def test_convolutions_refuse_weights_they_do_not_know() -> None:
    x, weight = (torch.empty(1, 1, size, size, device="meta") for size in (4, 2))
    for weights in (7, -1, 3):
        with pytest.raises(RuntimeError, match=f"conv_apply: weights must be 0 to 2, got {weights}"):
            ops.conv_apply(x, weight, weights, [1, 1], [0, 0], [1, 1], 1, False)
    geometry = ConvGeometry((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    with pytest.raises(RuntimeError, match="conv_apply: weights must be 0 to 2, got 7"):
        conv_apply(torch.rand(1, 1, 4, 4), ConvWeight(torch.rand(1, 1, 2, 2), 7), None, geometry)  # type: ignore[arg-type]


FAKE = [
    "addend shape",
    "output rank",
    "scale shape",
    "grad shape",
    "value shape",
    "decay",
    "kept",
    "mask shape",
    "backward decay",
    "average divisor",
]


@pytest.mark.parametrize("name", FAKE)
def test_shape_functions_refuse_what_the_kernels_refuse(name: str) -> None:
    call, text = _bad_calls()[name]
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError) as raised:
        call()
    assert text in str(raised.value)


def test_a_tensor_without_kernels_is_an_error() -> None:
    g = torch.empty(2, 3, device="meta")
    assert ops.epsilon_scale(g, None, None, None, 0.1).device.type == "meta"
    with pytest.raises(NotImplementedError):
        ops.epsilon_scale(torch.rand(2, 3).to_sparse(), None, None, None, 0.1)
    with pytest.raises(
        NotImplementedError, match="Could not run 'lrpkernels::conv_apply' with arguments from the 'CPU'"
    ):
        ops.conv_apply(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 1, 1), 0, [1, 1], [0, 0], [1, 1], 1, False)


@pytest.mark.parametrize("op", OPS)
def test_every_backend_of_the_build_is_registered(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lrpkernels::{op}", "CPU") == (op in CPU_OPS)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lrpkernels::{op}", "CUDA") == has_cuda_kernels()


def test_configuration_report() -> None:
    config = lrp.show_config()
    assert config.version == lrp.__version__ == build_info()["version"]
    assert config.torch == torch.__version__
    assert config.threads == torch.get_num_threads()
    assert config.cuda_kernels == has_cuda_kernels()
    assert bool(config.nvcc) == bool(config.cuda_architectures) == config.cuda_kernels
    assert config.cuda_reason in str(config)


def test_the_module_prints_the_configuration(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lrpkernels"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "CUDA kernels" in printed.stdout and torch.__version__ in printed.stdout


def test_the_command_line_prints_a_table_or_json() -> None:
    table = CliRunner().invoke(app, ["config"])
    assert table.exit_code == 0 and table.stdout.strip() == str(lrp.show_config())
    machine = CliRunner().invoke(app, ["config", "--json"])
    assert json.loads(machine.stdout)["version"] == lrp.__version__
