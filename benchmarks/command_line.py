"""Options that benchmarks have in common, and how they begin and end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import NETWORKS
from benchmarks.timing import environment, steady_allocator


def parser(
    text: str | None, networks: Sequence[str] = (), *, batch: int = 4, repeats: int | None = 11
) -> argparse.ArgumentParser:
    """A parser with the common options.

    Args:
        text: the module's docstring.
        networks: default of ``--networks``; none: no such option.
        batch, repeats: defaults; repeats None: nothing is timed.
    """
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if networks:
        found.add_argument("--networks", nargs="+", default=list(networks), choices=list(NETWORKS))
    found.add_argument("--batch", type=int, default=batch)
    found.add_argument("--size", type=int, default=112)
    if repeats is not None:
        found.add_argument("--repeats", type=int, default=repeats)
        found.add_argument("--threads", type=int, default=1)
        found.add_argument("--wall", action="store_true", help="wall-clock instead of processor time")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--json", type=Path, help="also write the rows to this file")
    return found


def begin(options: argparse.Namespace) -> None:
    """Sets threads and allocator as requested, before the first timing."""
    torch.set_num_threads(options.threads)
    steady_allocator()


def finish(options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints where the rows were measured, writes them if requested, and returns them."""
    result: dict[str, Any] = {"environment": environment(options.device), "rows": rows}
    if hasattr(options, "wall"):
        result["clock"] = "wall" if options.wall else "process"
    print(", ".join(f"{key} {value}" for key, value in result["environment"].items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return rows
