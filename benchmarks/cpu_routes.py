"""What each of the CPU's own ways of a convolution is worth in an ISNet step: steps without it beside steps with all of them.

    python -m benchmarks.cpu_routes
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.cpu_routes    # the other side of an AVX-512 machine

A ratio above 1 is what the step loses without that way (lrpkernels/functional/conv_cpu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import command_line
from benchmarks.step import steps
from benchmarks.timing import alternate, as_rows
from lrpkernels.functional import conv_cpu


@contextmanager
def without(*routes: str) -> Iterator[None]:
    """ATen's convolution in place of these."""
    before = conv_cpu.routes
    conv_cpu.routes = before - {*routes}
    try:
        yield
    finally:
        conv_cpu.routes = before


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "vgg11"], repeats=21)
    options = parser.parse_args(arguments)
    command_line.begin(options)
    rows: list[dict[str, Any]] = []
    for network in options.networks:
        step = list(
            steps(
                network, "selective", batch=options.batch, size=options.size, classes=10, training=True, device="cpu"
            ).values()
        )[1]

        def left_out(*routes: str, step: Callable[[], object] = step) -> Callable[[], None]:
            def run() -> None:
                with without(*routes):
                    step()

            return run

        runs = {"all": left_out(), **{f"without {r}": left_out(r) for r in sorted(conv_cpu.routes)}}
        runs["without any"] = left_out(*conv_cpu.routes)
        for row in as_rows(alternate(runs, options.repeats), network=network, batch=options.batch, size=options.size):
            rows.append(row)
            print(
                f"{network:<12} {row['name']:<20} {row['seconds']:9.4f} s {row['ratio']:7.3f}   {row['low']:.3f} - {row['high']:.3f}"
            )
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
