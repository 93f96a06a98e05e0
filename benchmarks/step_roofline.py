"""Time of a training step on GPUs as the data sheets allow it: calculated from counts of flops and bytes, not measured.

    python -m benchmarks.step_roofline
    python -m benchmarks.step_roofline --networks resnet18 --batch 8 --size 112 --json roofline.json

Every operation of a step is counted on the ``meta`` device (:mod:`benchmarks.op_log`): the multiply-adds of convolutions and matrix
products, and the bytes of each operation's inputs and outputs, each moved once. An operation takes the longer of flops / peak and
bytes / bandwidth; a step takes the sum. Left out are launches, caches, a second pass over the data where a kernel needs one, and how
far a kernel stays below the peak. "Elementwise" is everything without multiply-adds: activations, batch norm, pooling, sums, loss.

Steps: plain; ISNet Selective with the vendor's convolutions and with the fused ones; plain autograd LRP (benchmarks/gradient_trick.py),
which has no z^B rule at the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import isnet
from benchmarks import command_line
from benchmarks.gradient_trick import gradient_trick_step
from benchmarks.networks import NETWORKS
from benchmarks.op_log import Call, log, meta_autocast
from lrpkernels._extension import Backend, ops
from lrpkernels.functional import tuner

STEPS = ("plain", "ours", "ours (fused)", "autograd")


class Device(NamedTuple):
    """Figures of a data sheet: bytes and dense operations per second, the latter by precision."""

    name: str
    bandwidth: float
    peaks: dict[str, float]


DEVICES = (
    Device("A100 40 GB", 1555e9, {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}),
    Device("H100 SXM", 3350e9, {"float32": 67e12, "tf32": 495e12, "bfloat16": 990e12}),
)
PRECISIONS = tuple(DEVICES[0].peaks)


def time(calls: Sequence[Call], device: Device, precision: str) -> tuple[float, float]:
    """Seconds of a step, and those of its operations without multiply-adds."""
    total = elementwise = 0.0
    for call in calls:
        seconds = max(call.flops / device.peaks[precision], call.bytes / device.bandwidth)
        total += seconds
        elementwise += 0.0 if call.flops else seconds
    return total, elementwise


def count(network: str, step: str, *, batch: int, size: int, classes: int, dtype: torch.dtype) -> list[Call]:
    """Every operation of a step.

    Args:
        network: name in ``benchmarks.networks``.
        step: one of :data:`STEPS`.
        batch, size, classes: of the images, 3 x size x size.
        dtype: of images and weights alike.
    """
    with meta_autocast(), _fused_convolutions(step == "ours (fused)"):
        with torch.device("meta"):
            model = NETWORKS[network](classes).to(dtype).train()
            x, labels = torch.rand(batch, 3, size, size, dtype=dtype), torch.zeros(batch, dtype=torch.int64)
            masks = torch.zeros(batch, 1, size, size)
        return log(_step(step, model, x, labels, masks)).calls


def _step(step: str, model: torch.nn.Module, x: Tensor, labels: Tensor, masks: Tensor) -> Callable[[], object]:
    criterion = isnet.ISNetLoss(check_masks=False)
    if step == "autograd":
        return gradient_trick_step(model, x, labels, masks, criterion)
    if step == "plain":
        return lambda: F.cross_entropy(model(x), labels).backward()
    net = isnet.ISNet(model, "selective", check=False)
    net._range_is_checked = True  # only the first batch is checked, and there are no pixels here
    return lambda: criterion(net(x), labels, masks).total.backward()


@contextlib.contextmanager
def _fused_convolutions(active: bool) -> Iterator[None]:
    """The paths that CUDA devices take with fused kernels, for the meta device."""
    with contextlib.ExitStack() as stack:
        if active:
            stack.enter_context(mock.patch.object(ops, "backend", Backend("lrpkernels", "meta")))
            stack.enter_context(mock.patch.object(tuner, "current", tuner.Tuner("fused")))
        yield


def rows_of(network: str, *, batch: int, size: int, classes: int) -> list[dict[str, Any]]:
    """One row per device, precision and step."""
    rows = []
    counted: dict[tuple[str, str], list[Call]] = {}
    for dtype in ("float32", "bfloat16"):
        for step in STEPS:
            counted[dtype, step] = count(
                network, step, batch=batch, size=size, classes=classes, dtype=getattr(torch, dtype)
            )
    for device in DEVICES:
        for precision in PRECISIONS:
            times = {}
            for step in STEPS:
                calls = counted["bfloat16" if precision == "bfloat16" else "float32", step]
                seconds, elementwise = times[step] = time(calls, device, precision)
                rows.append({
                    "network": network, "device": device.name, "precision": precision, "name": step,
                    "flops": sum(call.flops for call in calls), "bytes": sum(call.bytes for call in calls),
                    "operations": len(calls), "seconds": seconds, "ratio": seconds / times["plain"][0],
                    "elementwise": elementwise / seconds,
                })  # fmt: skip
    return rows


def counts_table(rows: Sequence[dict[str, Any]]) -> str:
    """Flops, bytes in float32 and numbers of operations, in Markdown; everything as a multiple of the plain step's."""
    lines = [
        f"| network | plain: GFLOP, GB, operations | {' | '.join(f'{step}: flops, bytes, operations' for step in STEPS[1:])} |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    chosen = [row for row in rows if row["device"] == DEVICES[0].name and row["precision"] == "float32"]
    for network in dict.fromkeys(row["network"] for row in chosen):
        plain, *others = (row for row in chosen if row["network"] == network)
        cells = [f"{plain['flops'] / 1e9:.0f}, {plain['bytes'] / 1e9:.1f}, {plain['operations']}"]
        for row in others:
            cells.append(
                f"{row['flops'] / plain['flops']:.2f}, {row['bytes'] / plain['bytes']:.2f}, "
                f"{row['operations'] / plain['operations']:.1f}"
            )
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times_table(rows: Sequence[dict[str, Any]]) -> str:
    """Times in Markdown: the plain step's, the others as a multiple of it, and the elementwise share of each."""
    lines = [
        f"| GPU, precision | network | plain, ms | {' | '.join(STEPS[1:])} | elementwise: {', '.join(STEPS)} |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for device in DEVICES:
        for precision in PRECISIONS:
            for network in dict.fromkeys(row["network"] for row in rows):
                found = [
                    row
                    for row in rows
                    if (row["device"], row["precision"], row["network"]) == (device.name, precision, network)
                ]
                ratios = " | ".join(f"{row['ratio']:.2f}" for row in found[1:])
                shares = ", ".join(f"{row['elementwise']:.0%}" for row in found)
                lines.append(
                    f"| {device.name}, {precision} | {network} | {1e3 * found[0]['seconds']:.1f} | {ratios} | {shares} |"
                )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "resnet50", "vgg16", "densenet121"], batch=32, repeats=None)
    parser.set_defaults(size=224, device="cpu")
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for network in options.networks:
        rows += rows_of(network, batch=options.batch, size=options.size, classes=options.classes)
    print("Calculated from counts, not measured.\n")
    print(counts_table(rows) + "\n")
    print(times_table(rows) + "\n")
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
