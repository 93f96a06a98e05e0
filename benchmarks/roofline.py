"""The best times that the counts allow on a GPU: bytes over its bandwidth, arithmetic over its peak. Calculated, not measured.

``python -m benchmarks.traffic --roofline`` prints the tables of docs/gpu.md; ``--write`` puts them there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .kernel_calls import BATCH, CHANNELS, SIDE, Call, measure

from cuda_on_cpu import DTYPES, Dtype, load_counted  # isort: skip
from cuda_on_cpu.conv_reference import Layer  # isort: skip

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- roofline: begin -->", "<!-- roofline: end -->"


class Gpu(NamedTuple):
    """From the data sheets, dense: bytes per second, and operations per second by kind of arithmetic (a multiply-add is two)."""

    name: str
    bandwidth: float
    float32: float
    tf32: float
    half: float


GPUS = (
    Gpu("A100", 1555e9, 19.5e12, 156e12, 312e12),
    Gpu("H100", 3350e9, 67e12, 495e12, 990e12),
)
ELEMENTS = 100e6
DIVISION = 10  # instructions: a reciprocal, its refinement, and the checks around them


class Cost(NamedTuple):
    """Cost of one kernel per element of the forward values."""

    name: str
    bytes: tuple[float, ...]  # by dtype
    simple: float
    divisions: float

    def bounds(self, gpu: Gpu, which: int) -> tuple[float, float]:
        """Seconds that memory and arithmetic take for ELEMENTS. No operations fuse: each takes a multiply-add's place."""
        return ELEMENTS * self.bytes[which] / gpu.bandwidth, ELEMENTS * self.instructions / (gpu.float32 / 2)

    @property
    def instructions(self) -> float:
        return self.simple + DIVISION * self.divisions


def costs(dtypes: Iterable[Dtype], families: Iterable[Callable[[Dtype], Iterator[Call]]]) -> list[Cost]:
    """Counted on the shim, NCHW; arithmetic in the first dtype, which is float32."""
    numel, dtypes = BATCH * CHANNELS * SIDE * SIDE, list(dtypes)
    found = []
    for family in families:
        per_dtype = [[call for call in family(dtype) if call.layout != "channels-last"] for dtype in dtypes]
        for calls in zip(*per_dtype, strict=True):
            rows = [measure(call) for call in calls]
            moved = tuple(row.memory * call.minimal / numel for row, call in zip(rows, calls, strict=True))
            kernels = load_counted(calls[0].family, float_only=True)
            kernels.operations()
            calls[0].run(kernels)
            counted = kernels.operations()
            found.append(Cost(calls[0].name, moved, counted.simple / numel, counted.divisions / numel))
    return found


# (rows, columns) of a block's tile of the result, and the slab of its inner dimension, in 4-byte and in 2-byte numbers.
TILE, SIMT_SLAB, CORES_SLAB = (128, 64), 8, {4: 16, 2: 32}
WEIGHT_TILES = {False: (64, 64), True: (64, 128)}
WEIGHT_SIMT_SLAB = 16


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def issued(layer: Layer, what: str, size: int, cores: bool) -> int:
    """Multiply-adds in the tiles of a pass, those on padding included: conv_relevance, conv_apply or conv_weight_gradient.

    For strides coprime to every dilation.
    """
    rows, groups = layer.channels_out // layer.groups, layer.groups
    depth = layer.channels_in // layer.groups
    positions = layer.batch * math.prod(layer.output)
    if what == "conv_weight_gradient":
        tile = WEIGHT_TILES[cores]
        slab = CORES_SLAB[size] if cores else WEIGHT_SIMT_SLAB
        tiles = -(-rows // tile[0]) * -(-depth * math.prod(layer.kernel) // tile[1])
        wanted, most = -(-512 // (tiles * groups)), max(1, positions // 256)
        part = _up(-(-positions // min(wanted, most)), slab)
        padded = positions // part * part + _up(positions % part, slab)
        return _up(rows, tile[0]) * _up(depth * math.prod(layer.kernel), tile[1]) * groups * padded
    slab = CORES_SLAB[size] if cores else SIMT_SLAB
    if what == "conv_apply":
        return groups * _up(positions, TILE[0]) * _up(rows, TILE[1]) * math.prod(layer.kernel) * _up(depth, slab)
    total = 0
    for y in range(layer.stride[0]):
        for x in range(layer.stride[1]):
            places, taps = layer.batch, 1
            for d, phase in enumerate((y, x)):
                places *= len(range(phase, layer.size[d], layer.stride[d]))
                taps *= sum(
                    (phase + layer.padding[d] - k * layer.dilation[d]) % layer.stride[d] == 0
                    for k in range(layer.kernel[d])
                )
            total += groups * _up(places, TILE[0]) * _up(depth, TILE[1]) * taps * _up(rows, slab)
    return total


def needed(layer: Layer) -> int:
    """Multiply-adds of the layer."""
    return layer.batch * math.prod(layer.output) * math.prod(layer.weight_shape)


def compulsory(layer: Layer, what: str, size: int) -> int:
    """Bytes of the inputs (for relevance and weight gradient G and u at the output), the weight and the result, each once."""
    x, y = (math.prod(shape(layer.batch)) for shape in (layer.input_shape, layer.output_shape))
    return size * (x + y * (1 if what == "conv_apply" else 2) + math.prod(layer.weight_shape))


RESNET50 = {
    "7x7/2, 3 to 64, 224": Layer(32, 3, 64, (224, 224), (7, 7), (2, 2), (3, 3)),
    "1x1, 64 to 256, 56": Layer(32, 64, 256, (56, 56), (1, 1)),
    "3x3, 64 to 64, 56": Layer(32, 64, 64, (56, 56), (3, 3), (1, 1), (1, 1)),
    "3x3/2, 128 to 128, 56": Layer(32, 128, 128, (56, 56), (3, 3), (2, 2), (1, 1)),
    "3x3, 128 to 128, 28": Layer(32, 128, 128, (28, 28), (3, 3), (1, 1), (1, 1)),
    "1x1, 1024 to 256, 14": Layer(32, 1024, 256, (14, 14), (1, 1)),
    "3x3, 256 to 256, 14": Layer(32, 256, 256, (14, 14), (3, 3), (1, 1), (1, 1)),
    "3x3, 512 to 512, 7": Layer(32, 512, 512, (7, 7), (3, 3), (1, 1), (1, 1)),
    "1x1, 512 to 2048, 7": Layer(32, 512, 2048, (7, 7), (1, 1)),
}
PASSES = ("conv_relevance", "conv_apply", "conv_weight_gradient")
WAYS = (("float32", 4, False), ("tf32", 4, True), ("half", 2, True))


def elementwise_table(found: Iterable[Cost], dtypes: Iterable[Dtype]) -> list[str]:
    """Lines of Markdown."""
    names = [dtype.name for dtype in dtypes]
    heads = [f"{gpu.name}, {name}" for name in names for gpu in GPUS]
    lines = [
        "| op | "
        + " | ".join(f"bytes, {name}" for name in names)
        + " | operations + divisions | "
        + " | ".join(heads)
        + " |",
        "|---|" + "---|" * (len(names) + 1 + len(heads)),
    ]
    for cost in found:
        moved = " | ".join(f"{b:.2f}" for b in cost.bytes)
        bounds = [cost.bounds(gpu, which) for which in range(len(names)) for gpu in GPUS]
        times = " | ".join(f"{1e3 * max(m, a):.2f} ms{' (a)' if a > m else ''}" for m, a in bounds)
        lines.append(f"| `{cost.name}` | {moved} | {cost.simple:.1f} + {cost.divisions:.1f} | {times} |")
    return lines


def conv_table() -> list[str]:
    """Lines of Markdown."""
    heads = [f"{gpu.name}, {'16-bit' if way == 'half' else way}" for way, _, _ in WAYS for gpu in GPUS]
    lines = [
        "| layer (channels, input size) | pass | G multiply-adds | done / needed | " + " | ".join(heads) + " |",
        "|---|---|---|---|" + "---|" * len(heads),
    ]
    for name, layer in RESNET50.items():
        for what in PASSES:
            times, shares = [], []
            for way, size, cores in WAYS:
                operations, moved = 2 * issued(layer, what, size, cores), compulsory(layer, what, size)
                shares.append(f"{operations / 2 / needed(layer):.2f}")
                for gpu in GPUS:
                    arithmetic, memory = operations / getattr(gpu, way), moved / gpu.bandwidth
                    times.append(f"{1e6 * max(arithmetic, memory):.0f} us{' (m)' if memory > arithmetic else ''}")
            head = f"| {name} | `{what}` | {needed(layer) / 1e9:.2f} | {', '.join(shares)} | "
            lines.append(head + " | ".join(times) + " |")
    return lines


def tables(families: Iterable[Callable[[Dtype], Iterator[Call]]]) -> str:
    """Both tables, each after a sentence."""
    dtypes = [DTYPES["float32"], DTYPES["bfloat16"]]
    first = elementwise_table(costs(dtypes, families), dtypes)
    return "\n".join(
        [
            f"Bytes and operations per element of the forward values in NCHW; times for {ELEMENTS / 1e6:.0f} M elements.",
            "(a): bound by arithmetic.",
            "",
            *first,
            "",
            "ResNet50 at batch 32, 224x224. Done / needed: what the tiles multiply, padding included, over what the layer needs (float32,",
            "tf32, 16-bit). (m): bound by memory.",
            "",
            *conv_table(),
        ]
    )


def write(text: str) -> None:
    """Writes the text between the marks of docs/gpu.md.

    Raises:
        ValueError: the marks are missing.
    """
    page = PAGE.read_text()
    PAGE.write_text(f"{page[: page.index(BEGIN) + len(BEGIN)]}\n{text}\n{page[page.index(END) :]}")
