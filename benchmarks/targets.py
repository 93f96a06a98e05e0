"""Cost of explaining many targets of one image, and of a training step against the number of classes.

    python -m benchmarks.targets
    python -m benchmarks.targets --classes 2 10 50 200 1000

T targets share the forward pass and the denominators: the floor of T targets against one is (1 + T) / 2 for epsilon and (2 + T) / 3
for z+. A Selective or Stochastic ISNet step makes one heatmap whatever the number of classes; the Original makes one per class.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lrpkernels as lrp
from benchmarks.networks import NETWORKS
from benchmarks.step import steps
from benchmarks.timing import alternate, as_rows, environment, steady_allocator


def many_targets(
    network: str, composite: lrp.Composite | lrp.Rule, targets: int, batch: int, size: int
) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = NETWORKS[network](targets).eval().requires_grad_(False)
    x = torch.rand(batch, 3, size, size)
    attribution = lrp.LRP(model, composite)

    def explain(target: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return attribution(x, target)[1]

        return run

    return {"1 target": explain(0), f"{targets} targets": explain("all")}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=list(NETWORKS))
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 10, 50, 1000], help="of the training step")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall-clock instead of processor time")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steady_allocator()
    rows: list[dict[str, Any]] = []

    def report(runs: dict[str, Callable[[], object]], label: str, floor: float | None) -> None:
        for row in as_rows(
            alternate(runs, options.repeats, wall=options.wall), network=options.network, what=label, floor=floor
        ):
            rows.append(row)
            bound = "" if floor is None or row["ratio"] == 1 else f"   floor {floor:.2f}"
            print(
                f"{label:<16} {row['name']:<24} {row['seconds']:9.4f} {row['ratio']:7.3f}   {row['low']:.3f} - {row['high']:.3f}{bound}"
            )

    T = options.targets
    for label, composite, floor in (("epsilon", lrp.Epsilon(1e-2), (1 + T) / 2), ("z+", lrp.ZPlus(1e-2), (2 + T) / 3)):
        report(many_targets(options.network, composite, T, options.batch, options.size), label, floor)
    for classes in options.classes:
        runs = steps(
            options.network, "selective", batch=options.batch, size=options.size, classes=classes, training=True,
            device="cpu",
        )  # fmt: skip
        report(runs, f"{classes} classes", 2.0)
    result = {"environment": environment("cpu"), "clock": "wall" if options.wall else "process", "rows": rows}
    print(", ".join(f"{k} {v}" for k, v in result["environment"].items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
