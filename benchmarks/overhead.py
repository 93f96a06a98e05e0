"""What a block costs beside its arithmetic: time per block of a network so small that calls are all there is.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --blocks 32 --repeats 301 --json overhead.json

Blocks of convolution, batch norm and ReLU, 8 channels on 4x4 pixels. Microseconds per block: of a forward pass, of what recording adds
to it, of a heatmap above forward pass plus input gradient, and of a step through a heatmap above two plain steps, which is its floor.
Each with static calls (``LRP(static=True)``), too. The least of many alternating runs: other programs only ever add.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks import command_line
from lrpkernels.tools.bench import heatmap, input_gradient

_RULE = lrp.Epsilon(1e-2)


def network(blocks: int) -> nn.Module:
    """A chain of small blocks and a linear head, in evaluation mode."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def runs(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """The runs to time."""

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def record(static: lrp.StaticCalls | None) -> None:
        with torch.no_grad(), lrp.record(model, x, composite=_RULE, static=static, check=False):
            pass

    def plain() -> None:
        model.zero_grad()
        model(x).sum().backward()

    def step(static: bool) -> Callable[[], None]:
        attribution = lrp.LRP(model, _RULE, static=static, check=False)

        def run() -> None:
            model.zero_grad()
            logits, relevance = attribution(x, 1)
            (logits.sum() + relevance.square().sum()).backward()

        return run

    calls = lrp.StaticCalls()
    return {
        "forward": forward,
        "recorded": lambda: record(None),
        "recorded, static": lambda: record(calls),
        "gradient": input_gradient(model, x),
        "heatmap": heatmap(model, x, _RULE),
        "heatmap, static": heatmap(model, x, _RULE, static=True),
        "plain step": plain,
        "step": step(False),
        "step, static": step(True),
    }


def least(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of processor time, the least of ``repeats`` alternating runs."""
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats + 1):  # the first warms up
        for name, run in timed.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, repeats=151)
    parser.add_argument("--blocks", type=int, default=16)
    options = parser.parse_args(arguments)
    command_line.begin(options)
    torch.manual_seed(0)
    best = least(
        runs(network(options.blocks).to(options.device), torch.rand(1, 8, 4, 4, device=options.device)), options.repeats
    )
    micro = {name: 1e6 * seconds / options.blocks for name, seconds in best.items()}
    rows: list[dict[str, Any]] = [{"name": "forward pass", "us": micro["forward"]}]
    for suffix in ("", ", static"):
        above = {
            f"recording{suffix}, above a forward pass": micro[f"recorded{suffix}"] - micro["forward"],
            f"heatmap{suffix}, above forward + input gradient": micro[f"heatmap{suffix}"] - micro["gradient"],
            f"step{suffix}, above two plain steps": micro[f"step{suffix}"] - 2 * micro["plain step"],
        }
        rows += [{"name": name, "us": us} for name, us in above.items()]
    for row in rows:
        print(f"{row['name']:<56} {row['us']:7.1f} us per block")
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
