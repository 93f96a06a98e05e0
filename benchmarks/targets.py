"""Cost of explaining many targets of one image, and of a training step against the number of classes.

    python -m benchmarks.targets
    python -m benchmarks.targets --classes 2 10 50 200 1000

The first number of classes is what the others are compared with, for plain and for ISNet steps, in one alternating run each.
T targets share the forward pass and the denominators: the floor of T targets against one is (1 + T) / 2 for epsilon and (2 + T) / 3
for z+. A Selective or Stochastic ISNet step makes one heatmap whatever the number of classes; the Original makes one per class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import lrpkernels as lrp
from benchmarks import command_line
from benchmarks.networks import NETWORKS
from benchmarks.step import steps
from benchmarks.timing import alternate, as_rows


def many_targets(
    network: str, composite: lrp.Composite | lrp.Rule, targets: int, batch: int, size: int, device: str
) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = NETWORKS[network](targets).to(device).eval().requires_grad_(False)
    x = torch.rand(batch, 3, size, size, device=device)
    attribution = lrp.LRP(model, composite, check=False)

    def explain(target: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return attribution(x, target)[1]

        return run

    return {"1 target": explain(0), f"{targets} targets": explain("all")}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, batch=2, repeats=7)
    parser.add_argument("--network", default="resnet18", choices=list(NETWORKS))
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 10, 50, 1000], help="of the training step")
    options = parser.parse_args(arguments)
    command_line.begin(options)
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
        report(many_targets(options.network, composite, T, options.batch, options.size, options.device), label, floor)
    plain: dict[str, Callable[[], object]] = {}
    isnet: dict[str, Callable[[], object]] = {}
    for classes in options.classes:
        made = steps(
            options.network, "selective", batch=options.batch, size=options.size, classes=classes, training=True,
            device=options.device,
        )  # fmt: skip
        plain[f"{classes} classes"], isnet[f"{classes} classes"] = made.values()
    report(plain, "plain step", 1.0)
    report(isnet, "ISNet step", 1.0)
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
