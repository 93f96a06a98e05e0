"""``lrpkernels profile``: time and bytes of every block of a heatmap, beside the least possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..engine.propagate import Walk
from ..engine.target import Target, select_logits, start
from ..graph import Arrived, Multipliers, Node, Value
from ..layers import Block
from ..rules import Composite, Rule, as_composite
from ..tape import Tape, record
from .timing import clock
from .traffic import Traffic, tensors


@dataclass(frozen=True)
class BlockProfile:
    """One operation of the fused tape: a convolution with its batch norm and ReLU, a pooling, a sum, ...

    Attributes:
        module: dotted name of the module that ran it.
        operation: what was fused, for example "conv -> batch norm -> relu".
        rule: the one that the relevance pass followed there; "" where no rule matters (reshapes, concatenations).
        shape: of its (first) output.
        forward, relevance: seconds of the forward pass and of the relevance pass, medians.
        floor: the least ``relevance / forward`` at equal efficiency: passes of the layer's size per forward pass (docs/method.md).
        forward_bytes, relevance_bytes: what PyTorch's operations read and wrote.
        forward_least, relevance_least: each input, weight and output once, and for the relevance the forward value that it reads.
    """

    module: str
    operation: str
    rule: str
    shape: tuple[int, ...]
    forward: float
    relevance: float
    floor: float
    forward_bytes: int
    forward_least: int
    relevance_bytes: int
    relevance_least: int

    @property
    def ratio(self) -> float:
        """Relevance pass over forward pass; infinite if the forward pass took no measurable time."""
        return self.relevance / self.forward if self.forward else float("inf")


@dataclass(frozen=True)
class Profile:
    """All blocks in forward order, and the median seconds of both whole passes."""

    blocks: tuple[BlockProfile, ...]
    forward: float
    relevance: float

    @property
    def overhead(self) -> tuple[float, float]:
        """Microseconds per block outside the blocks, forward and relevance: recording, walking the tape, reading the clock."""
        spent = (
            self.forward - sum(b.forward for b in self.blocks),
            self.relevance - sum(b.relevance for b in self.blocks),
        )
        return 1e6 * spent[0] / len(self.blocks), 1e6 * spent[1] / len(self.blocks)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = [{**asdict(block), "ratio": block.ratio} for block in self.blocks]
        forward, relevance = self.overhead
        overhead = {"forward_overhead_us": forward, "relevance_overhead_us": relevance}
        return {"forward": self.forward, "relevance": self.relevance, **overhead, "blocks": found}


def profile(
    model: nn.Module,
    x: Tensor,
    composite: Composite | Rule | None = None,
    target: Target = None,
    *,
    repeats: int = 5,
    wall: bool = False,
) -> Profile:
    """The time that a heatmap spends in each block. Runs without gradients, in the model's present mode.

    Args:
        model, composite, target: as in :class:`lrpkernels.LRP`.
        x: one input, (B, C, ...).
        repeats: runs of which the medians count, after one to warm up and one that counts bytes.
        wall: wall-clock instead of processor time (on a GPU always the wall's, synchronised around each block).

    Raises:
        ValueError: repeats below 1.
        lrpkernels.errors.RelevanceError: a model that cannot be explained.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    rules = as_composite(composite)
    with torch.no_grad():
        _run(model, x, rules, target, clock(wall))
        with Traffic() as traffic:
            counted = _run(model, x, rules, target, lambda: traffic.total)
        timed = [_run(model, x, rules, target, clock(wall)) for _ in range(repeats)]
    blocks = []
    for index, block in enumerate(counted.blocks):
        forward, relevance = (median(run.spent[index][side] for run in timed) for side in (0, 1))
        moved = [int(n) for n in counted.spent[index]]
        blocks.append(
            BlockProfile(
                **block, forward=forward, relevance=relevance, forward_bytes=moved[0], relevance_bytes=moved[1]
            )
        )
    return Profile(tuple(blocks), median(run.forward for run in timed), median(run.relevance for run in timed))


Reading = Callable[[], float]


class _Metered(TorchFunctionMode):
    """Reads the meter around every function of a forward pass, and notes the difference with its results."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self.spent: dict[int, float] = {}
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.reading()
        out = func(*args, **(kwargs or {}))
        spent = self.reading() - start
        for tensor in tensors(out):
            if id(tensor) not in self.spent:  # otherwise it was there before: an argument, the base of a view
                self.spent[id(tensor)] = spent
                self._kept.append(tensor)  # so that no other tensor takes its id
        return out


@dataclass
class _Run:
    """Readings of one run: per block (forward, relevance), and of both passes."""

    blocks: list[dict[str, Any]]
    spent: list[list[float]]
    forward: float
    relevance: float


def _run(model: nn.Module, x: Tensor, composite: Composite, target: Target, reading: Reading) -> _Run:
    meter = _Metered(reading)
    with meter:
        begin = reading()
        tape = record(model, x, check=False)
        middle = reading()
    with tape:
        logits = select_logits(tape.output, None)
        value = tape.value_of(logits)
        planned = tape.plan(composite)
        described = [_described(tape, node, rule) for node, rule in planned]
        # The tape keeps the tensors, so ids tell them apart.
        spent = [[sum(meter.spent.get(id(v.tensor), 0.0) for v in _made_by(node)), 0.0] for node, _ in planned]
        places = {id(node): place for place, (node, _) in enumerate(planned)}

        def through(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
            before = reading()
            found = node.propagate(multipliers, rule)
            if id(node) in places:  # not a part of a block
                spent[places[id(node)]][1] += reading() - before
            return found

        relevance_start = reading()
        seed, _ = start(target, logits)
        Walk(planned, (), through).run([(value, seed)], tape.input_values, release=False)
        return _Run(described, spent, middle - begin, reading() - relevance_start)


def _made_by(node: Node) -> list[Value]:
    """Every value that the operation made, those inside a block included."""
    return [value for part in (node.nodes() if isinstance(node, Block) else [node]) for value in part.outputs]


def _described(tape: Tape, node: Node, rule: Rule) -> dict[str, Any]:
    """The fields that do not depend on the run."""
    values = [*node.inputs, *node.outputs]
    passed = sum(map(_bytes_of, values))
    weight = forward_value = 0
    if isinstance(node, Block):
        weight = node.linear.weight.numel() * node.linear.weight.element_size()
        forward_value = _bytes_of(node.output) if node.relu is not None else 0
    return {
        "module": tape.module_path(node.module or tape.model),
        "operation": node.label(),
        "rule": type(rule).__name__
        if isinstance(node, Block) or node.kind not in ("reshape", "movement", "cat")
        else "",
        "shape": tuple(node.output.shape),
        "floor": rule.passes(node.input.nonnegative) if isinstance(node, Block) else 1.0,
        "forward_least": passed + weight,
        "relevance_least": passed + weight + forward_value,
    }


def _bytes_of(value: Value) -> int:
    return value.shape.numel() * value.dtype.itemsize


def table(found: Profile) -> Any:
    """A rich table: milliseconds, ratios beside their floors, MiB moved and as a multiple of the least."""
    result = Table(
        "module",
        "operation",
        "rule",
        "output",
        "forward ms",
        "relevance ms",
        "ratio",
        "floor",
        "MiB",
        "x least",
        "MiB R",
        "x least R",
    )
    for block in found.blocks:
        result.add_row(
            block.module, block.operation, block.rule, "x".join(map(str, block.shape)), f"{1e3 * block.forward:.3f}",
            f"{1e3 * block.relevance:.3f}", f"{block.ratio:.2f}", f"{block.floor:.0f}", *_traffic(block.forward_bytes, block.forward_least),
            *_traffic(block.relevance_bytes, block.relevance_least),
        )  # fmt: skip
    result.add_section()
    result.add_row(*_sums(found.blocks))
    return result


def _traffic(moved: int, least: int) -> tuple[str, str]:
    return f"{moved / 2**20:.1f}", f"{moved / least:.2f}" if least else "-"


def _sums(blocks: Sequence[BlockProfile]) -> list[str]:
    def total(name: str) -> Any:
        return sum(getattr(block, name) for block in blocks)

    forward, relevance = total("forward"), total("relevance")
    floor = sum(block.floor * block.forward for block in blocks) / forward if forward else float("nan")
    ratio = relevance / forward if forward else float("inf")
    return [
        "all blocks", "", "", "", f"{1e3 * forward:.3f}", f"{1e3 * relevance:.3f}", f"{ratio:.2f}", f"{floor:.2f}",
        *_traffic(total("forward_bytes"), total("forward_least")), *_traffic(total("relevance_bytes"), total("relevance_least")),
    ]  # fmt: skip
