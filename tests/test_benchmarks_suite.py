"""The benchmarks of scale, peers, kernels and counts: their own arithmetic, and that each runs at toy size."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import classes, overhead, peer_steps, scaling, step_roofline
from benchmarks.gradient_trick import autograd_heatmap, modified_relus, stabilized_layers
from benchmarks.kernel_inputs import LAYERS, arguments_of, eager
from benchmarks.op_log import Call, log
from lrpkernels.testing import CPU_OPS, OPS, reference

ROOT = Path(__file__).resolve().parents[1]


def test_exponents_are_those_of_power_laws() -> None:
    assert scaling.exponent([(x, 3 * x**1.5) for x in (1.0, 2.0, 8.0)]) == pytest.approx(1.5)
    assert scaling.exponent([(x, 7.0) for x in (1.0, 2.0)]) == pytest.approx(0)
    assert math.isnan(scaling.exponent([(2.0, 3.0)]))


def test_scaling_measures_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scaling.CURVES, "size", ({"batch": 2, "width": 4, "depth": 1, "classes": 3}, (32, 40)))
    path = tmp_path / "scaling.json"
    rows = scaling.main(["--curves", "size", "--repeats", "3", "--device", "cpu", "--json", str(path)])
    assert [row["value"] for row in rows] == [32] * 7 + [40] * 7 and all(row["curve"] == "size" for row in rows)
    assert "| ISNet selective step / plain step |" in capsys.readouterr().out
    assert scaling.main(["--from", str(path), "--plots", str(tmp_path)]) == json.loads(path.read_text())["rows"]
    for name in ("seconds", "ratios"):
        assert (tmp_path / f"scaling-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_overhead_is_told_per_block(capsys: pytest.CaptureFixture[str]) -> None:
    rows = overhead.main(["--blocks", "2", "--repeats", "2", "--device", "cpu"])
    assert len(rows) == 7 and rows[0]["name"] == "forward pass" and rows[0]["us"] > 0
    assert "heatmap, static, above forward + input gradient" in capsys.readouterr().out


def test_classes_have_their_floors() -> None:
    rows = classes.main(
        ["--classes", "2", "3", "--variants", "original", "selective", "--size", "32", "--repeats", "1"]
    )
    assert [(row["variant"], row["classes"], row["floor"]) for row in rows] == [
        ("original", 2, 3),
        ("selective", 2, 2),
        ("original", 3, 4),
        ("selective", 3, 2),
    ]


def test_an_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    device = step_roofline.Device("a", 10.0, {"float32": 100.0})
    calls = [Call("a.b.c", (), 20, 1000), Call("a.b.c", (), 20, 100), Call("a.b.c", (), 30, 0)]
    assert step_roofline.time(calls, device, "float32") == (10 + 2 + 3, 3)


def test_flops_of_a_convolution_and_its_backward() -> None:
    with torch.device("meta"):
        conv, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.rand(2, 3, 5, 7)
    calls = log(lambda: conv(x).sum().backward()).calls
    forward = 2 * 2 * 35 * 8 * 27
    assert [call.flops for call in calls if call.flops] == [forward, forward]  # x takes no gradient
    convolution = next(call for call in calls if call.name == "aten.convolution")
    assert convolution.bytes == 4 * (2 * 3 * 35 + 8 * 27 + 2 * 8 * 35)


def test_counted_steps_are_ordered() -> None:
    rows = step_roofline.main(["--networks", "vgg11", "--batch", "2", "--size", "32"])
    chosen = {row["name"]: row for row in rows if (row["device"], row["precision"]) == ("A100 40 GB", "float32")}
    assert list(chosen) == list(step_roofline.STEPS) and chosen["plain"]["ratio"] == 1
    assert 1.9 < chosen["ours"]["flops"] / chosen["plain"]["flops"] < 2.4
    assert chosen["plain"]["bytes"] < chosen["ours"]["bytes"] < chosen["autograd"]["bytes"]
    assert {row["elementwise"] < 1 for row in rows} == {True}


@pytest.mark.parametrize("op", OPS)
def test_eager_does_what_the_op_does(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "tiny", type(LAYERS["512x7x7"])(2, 8, 4))
    arguments = arguments_of(op, "tiny", torch.float64)
    if op == "epsilon_scale_backward":  # eager writes no case for u = 0, where ours takes the slope to be 0
        arguments = (*arguments[:3], arguments[3] + 0.1, *arguments[4:])
    ours = getattr(torch.ops.lrpkernels, op)(*arguments) if op in CPU_OPS else reference(op, arguments)
    theirs = eager(op, arguments)()
    ours, theirs = (r if isinstance(r, tuple) else (r,) for r in (ours, theirs))
    filled = [r for r in ours if r.numel()]
    assert len(filled) <= len(reference(op, arguments))
    for own, other in zip(filled, theirs, strict=False):
        assert torch.allclose(own.double(), other.double(), rtol=1e-9, atol=1e-12)


def test_unknown_ops_are_refused() -> None:
    with pytest.raises(ValueError, match="op: no inputs for 'nothing'"):
        arguments_of("nothing", "512x7x7", torch.float32)


def test_kernels_run_under_pytest(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    chosen = [
        "-k",
        "ratio and not backward and 512",
        "--device",
        "cpu",
        "--benchmark-min-rounds=2",
        "--benchmark-max-time=0.01",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "benchmarks/bench_kernels.py", *chosen]
    # Beside the workers of pytest-xdist pytest-benchmark would not measure.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command.append(f"--benchmark-json={path}")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())["benchmarks"]
    assert {row["extra_info"]["by"] for row in found} == {"lrpkernels", "eager"}


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(5, 10)).eval()


def test_peers_gradients_are_compared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peer_steps.known.NETWORKS, "small", lambda classes: small())
    options = type("Options", (), {"batch": 2, "size": 16, "device": "cpu", "repeats": 3, "wall": False})
    rows = {row["name"]: row for row in peer_steps.measure(["small"], options)}
    for name in ("ours", "gradient trick", "autograd, layer by layer"):
        assert rows[name]["heatmap_cosine"] == pytest.approx(1) and rows[name]["gradient_cosine"] == pytest.approx(1)
    assert rows["plain step"]["ratio"] == 1 and rows["ours"]["by_ours"] == 1
    assert "captum fails" in capsys.readouterr().out and not {"captum", "autoLRP", "lxt"} & set(rows)


@pytest.mark.parametrize("changed", [modified_relus, stabilized_layers])
def test_outside_a_heatmap_the_copies_are_the_network(changed: object) -> None:
    model, x = small(), torch.rand(2, 3, 16, 16)
    copy = changed(model)  # type: ignore[operator]
    logits, heatmap = autograd_heatmap(copy, x, torch.tensor([1, 2]))
    assert torch.equal(logits, model(x)) and heatmap.requires_grad
    copy(x).sum().backward()
    model(x).sum().backward()
    for own, other in zip(copy.parameters(), model.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad)
