"""``python -m benchmarks.random_networks --count 2000``: draw networks, compare, print the smallest case of every failure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from .case import Case, Rules, draw_case
from .check import failure
from .formulas import RuleSpec
from .network import Plan, Planned
from .shrink import shrunk
from .steps import KINDS


def main(argv: Sequence[str] | None = None) -> list[Case]:
    """The failing cases, shrunk."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_networks", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many")
    parser.add_argument("--only", nargs="*", default=[], choices=sorted(KINDS), help="these kinds of steps only")
    parser.add_argument("--case", help="a printed case, to run again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.case:
        names = {"Case": Case, "Rules": Rules, "Plan": Plan, "Planned": Planned, "RuleSpec": RuleSpec}
        print(failure(eval(options.case, names)))
        return []
    kinds = options.only or list(KINDS)
    failed: list[Case] = []
    for seed in range(options.seed, options.seed + options.count):
        case = draw_case(seed, kinds)
        if failure(case) is not None:
            small = shrunk(case)
            failed.append(small)
            steps = " ".join(f"{s.kind}{s.reads}{s.options.get('form', '')}" for s in small.plan.steps)
            print(f"network {seed}: {failure(small)}\n  {steps}, {small.rules}\n  --case {str(small)!r}", flush=True)
            if len(failed) == options.failures:
                break
    print(f"{options.count} networks, {len(failed)} failures")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
