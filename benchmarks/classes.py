"""Cost of a training step of every variant against the number of classes, in plain steps of as many classes.

    python -m benchmarks.classes
    python -m benchmarks.classes --variants selective stochastic --classes 2 1000 --json classes.json

The measuring is ``isnet experiment classes``'s (a narrow ResNet on one-channel images, processor time, one thread), which also draws
the figure of docs/experiments.md; here the floor stands beside each ratio.
"""

from __future__ import annotations

from typing import Any

from benchmarks import command_line
from benchmarks.step import floor
from isnet.experiments import classes as experiment


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, repeats=None)
    parser.set_defaults(size=64, device="cpu")
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 10, 50, 200, 1000])
    parser.add_argument("--variants", nargs="+", default=list(experiment.VARIANTS), choices=list(experiment.VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-heatmaps", type=int, default=200, help="no Original step with more classes")
    options = parser.parse_args(arguments)
    rows = experiment.measure(
        options.classes, variants=options.variants, batch=options.batch, size=options.size, repeats=options.repeats,
        most_heatmaps=options.most_heatmaps, progress=False,
    )  # fmt: skip
    for row in rows:
        row["name"], row["floor"] = f"ISNet {row['variant']} step", floor(row["variant"], row["classes"], 1)
    print(experiment.table(rows))
    print(f"{'variant':<12} {'classes':>8} {'ratio':>8} {'floor':>8}")
    for row in rows:
        print(f"{row['variant']:<12} {row['classes']:>8} {row['ratio']:>8.2f} {row['floor']:>8.2f}")
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
