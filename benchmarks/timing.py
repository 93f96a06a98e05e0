"""Ratios measured in turn, and the environment they were measured in."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import asdict
from typing import Any

import torch

from lrpkernels.tools.timing import Ratio, alternate, steady_allocator

__all__ = ["Ratio", "alternate", "as_rows", "environment", "steady_allocator"]


def environment(device: str) -> dict[str, Any]:
    """Everything a figure depends on: processor or GPU, torch, threads, commit."""
    info = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d"),
    }
    return info


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}"
    except (OSError, IndexError):
        return platform.processor()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        ).stdout.strip()
    except OSError:
        return ""


def as_rows(ratios: list[Ratio], **more: Any) -> list[dict[str, Any]]:
    """The ratios as plain dicts for JSON, each with the same further columns."""
    return [{**more, **asdict(r)} for r in ratios]
