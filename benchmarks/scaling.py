"""Cost against image size, batch, width, depth and classes, with the exponent of the power law that fits each curve.

    python -m benchmarks.scaling --json scaling.json --plots docs/images
    python -m benchmarks.scaling --curves size batch --repeats 7
    python -m benchmarks.scaling --from scaling.json --plots docs/images     # draw what was measured before
    python -m benchmarks.scaling --ddp                                       # weak scaling, 1 and 2 gloo processes

Each point is an alternating run of a residual network (benchmarks.networks.residual): an ISNet Selective step beside a plain step, and
epsilon and EpsilonPlus heatmaps beside forward pass plus input gradient; step and epsilon with static calls, too. A cost that grows as
fast as its baseline has a flat ratio: exponent 0 in the table of ratios, whatever the exponents of both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.networks import residual
from benchmarks.step import steps
from benchmarks.timing import alternate, as_rows
from lrpkernels.tools.bench import COMPOSITES, heatmap, input_gradient

# Per curve: the settings that its points share, and the values of the one that varies.
CURVES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "size": ({"batch": 1, "width": 32, "depth": 2, "classes": 10}, (64, 96, 128, 192, 256, 384, 512)),
    "batch": ({"size": 112, "width": 32, "depth": 2, "classes": 10}, (1, 2, 4, 8, 16)),
    "width": ({"batch": 2, "size": 112, "depth": 1, "classes": 10}, (8, 16, 32, 64, 128)),
    "depth": ({"batch": 2, "size": 112, "width": 32, "classes": 10}, (1, 2, 4, 8)),
    "classes": ({"batch": 2, "size": 112, "width": 32, "depth": 2}, (2, 10, 100, 1000)),
}
PAIRS = {
    "ISNet selective step": ("plain step", 2.0),
    "ISNet selective step, static": ("plain step", 2.0),
    "epsilon": ("forward + input gradient", COMPOSITES["epsilon"][0]),
    "epsilon, static": ("forward + input gradient", COMPOSITES["epsilon"][0]),
    "EpsilonPlus": ("forward + input gradient", COMPOSITES["EpsilonPlus"][0]),
}


def runs_of(
    *, batch: int, size: int, width: int, depth: int, classes: int, device: str
) -> list[dict[str, Callable[[], object]]]:
    """The two groups of runs of one point, each with its baseline first."""
    torch.manual_seed(0)
    model = residual(width, depth, classes)
    training = steps(
        "", "selective", batch=batch, size=size, classes=classes, training=True, device=device, model=model, static=True
    )
    still = residual(width, depth, classes).to(device).eval().requires_grad_(False)
    x = torch.rand(batch, 3, size, size, device=device)
    heatmaps: dict[str, Callable[[], object]] = {"forward + input gradient": input_gradient(still, x)}
    heatmaps |= {name: heatmap(still, x, COMPOSITES[name][1]()) for name in ("epsilon", "EpsilonPlus")}
    heatmaps["epsilon, static"] = heatmap(still, x, COMPOSITES["epsilon"][1](), static=True)
    return [training, heatmaps]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The p of y = c x^p that fits best in logarithms; NaN for fewer than two values of x."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    center_x, center_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - center_x) ** 2 for x in xs)
    return sum((x - center_x) * (y - center_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else math.nan


def series(rows: Sequence[dict[str, Any]], curve: str, name: str, what: str) -> list[tuple[float, float]]:
    """(value of the varied setting, seconds or ratio) of one run."""
    return [(row["value"], row[what]) for row in rows if row["curve"] == curve and row["name"] == name]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios at each point and the fitted exponents of ratio, cost and baseline, in Markdown."""
    lines = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        values = list(dict.fromkeys(row["value"] for row in rows if row["curve"] == curve))
        lines += [
            f"| {curve} | {' | '.join(map(str, values))} | floor | exponent: ratio | cost | baseline |",
            f"| --- |{' ---: |' * (len(values) + 4)}",
        ]
        for name, (baseline, floor) in PAIRS.items():
            ratios = series(rows, curve, name, "ratio")
            fits = (ratios, series(rows, curve, name, "seconds"), series(rows, curve, baseline, "seconds"))
            cells = (
                [f"{ratio:.2f}" for _, ratio in ratios] + [f"{floor:.1f}"] + [f"{exponent(fit):+.2f}" for fit in fits]
            )
            lines.append(f"| {name} / {baseline} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """scaling-seconds.png and scaling-ratios.png: a panel per curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    curves = list(dict.fromkeys(row["curve"] for row in rows))
    written = []
    for what, label in (("seconds", "processor time, s"), ("ratio", "cost / baseline")):
        figure = Figure(figsize=(3.1 * len(curves), 3.3), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=what == "ratio", squeeze=False)[0]
        for axes, curve in zip(panels, curves, strict=True):
            names = dict.fromkeys(row["name"] for row in rows) if what == "seconds" else PAIRS
            for index, name in enumerate(names):
                points = series(rows, curve, name, what)
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{index}", label=name)
                if what == "ratio":
                    axes.axhline(PAIRS[name][1], color=f"C{index}", linewidth=0.8, linestyle=":")
            axes.set_xscale("log", base=2 if curve != "classes" else 10)
            axes.set_xlabel({"size": "image side, pixels", "batch": "images per batch"}.get(curve, curve))
            axes.grid(alpha=0.3, which="both")
            if what == "seconds":
                axes.set_yscale("log")
        if what == "ratio":
            panels[0].set_ylim(0, None)
        panels[0].set_ylabel(label + (" (dotted: floor)" if what == "ratio" else ""))
        panels[-1].legend(frameon=False, fontsize="small")
        written.append(folder / f"scaling-{'seconds' if what == 'seconds' else 'ratios'}.png")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(written[-1], dpi=110)
    return written


def measure(curve: str, values: Sequence[int], options: Any) -> list[dict[str, Any]]:
    shared = CURVES[curve][0]
    rows = []
    for value in values:
        for runs in runs_of(**{**shared, curve: value}, device=options.device):  # type: ignore[arg-type]
            found = alternate(runs, options.repeats, warmup=1, wall=options.wall)
            rows += as_rows(found, curve=curve, value=value, **{k: v for k, v in shared.items() if k != curve})
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, repeats=5)
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--points", type=int, help="only so many points of each curve, the cheapest")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="write scaling-seconds.png and scaling-ratios.png there"
    )
    parser.add_argument("--from", dest="known", type=Path, metavar="JSON", help="measure nothing, use these rows")
    parser.add_argument("--ddp", action="store_true", help="weak scaling over processes instead of the curves")
    options = parser.parse_args(arguments)
    if options.ddp:
        from benchmarks.weak_scaling import measure as over_processes

        return command_line.finish(options, over_processes(options))
    if options.known:
        rows = json.loads(options.known.read_text())["rows"]
    else:
        command_line.begin(options)
        rows = []
        for curve in options.curves:
            rows += measure(curve, CURVES[curve][1][: options.points], options)
    print(table(rows))
    if options.plots:
        print("drawn:", *draw(rows, options.plots))
    return rows if options.known else command_line.finish(options, rows)


if __name__ == "__main__":
    main()
