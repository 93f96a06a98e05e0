"""Cost of a heatmap against forward pass plus input gradient, and against peers.

    python -m benchmarks.heatmap
    python -m benchmarks.heatmap --networks resnet50 --size 224 --json heatmap.json

The floor of an epsilon heatmap is 1.0 (it is a backward pass of the same size), of a z+ heatmap 1.5 (denominators on top).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.networks import NETWORKS, images
from benchmarks.timing import alternate, as_rows
from lrpkernels.tools.bench import COMPOSITES, heatmap, input_gradient


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "vgg16", "densenet121"])
    parser.add_argument("--composites", nargs="+", default=list(COMPOSITES), choices=list(COMPOSITES))
    parser.add_argument("--static", action="store_true", help="also each heatmap with static calls (LRP(static=True))")
    options = parser.parse_args(arguments)
    command_line.begin(options)
    rows: list[dict[str, Any]] = []
    print(f"{'network':<12} {'heatmap':<24} {'seconds':>9} {'ratio':>7} {'floor':>6}   10 % - 90 %")
    for network in options.networks:
        torch.manual_seed(0)
        model = NETWORKS[network](10).to(options.device).eval().requires_grad_(False)
        x = images(network, options.batch, options.size, options.device)
        runs: dict[str, Callable[[], object]] = {"forward + input gradient": input_gradient(model, x)}
        for name in options.composites:
            runs[name] = heatmap(model, x, COMPOSITES[name][1]())
            if options.static:
                runs[f"{name}, static"] = heatmap(model, x, COMPOSITES[name][1](), static=True)
        for row in as_rows(alternate(runs, options.repeats, wall=options.wall), network=network):
            composite = row["name"].removesuffix(", static")
            row["floor"] = COMPOSITES[composite][0] if composite in COMPOSITES else 1.0
            rows.append(row)
            print(
                f"{network:<12} {row['name']:<24} {row['seconds']:9.4f} {row['ratio']:7.3f} {row['floor']:6.1f}   "
                f"{row['low']:.3f} - {row['high']:.3f}"
            )
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
