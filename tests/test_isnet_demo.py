"""The demonstration, end to end on few digits, and what it claims."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from test_isnet_cli import data_folder  # noqa: F401

from isnet.experiments import demo
from isnet.runs.tables import Row


def test_demo_writes_everything_and_resumes(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One thread in this process: the synthetic digits are known to it alone.
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    config = demo.DemoConfig(
        folder=str(tmp_path / "demo"),
        data_folder=str(data_folder),
        standard_epochs=1,
        warmup=1,
        epochs=1,
        batch_size=16,
    )
    console = Console(record=True, width=120)
    result = demo.run_demo(config, console=console)
    text = console.export_text()
    assert set(result.rows) == {"standard", "control", "selective", "stochastic"}
    assert all(name in text for name in ("standard", "Selective ISNet", "Stochastic ISNet", "control"))
    assert len(result.claims) == 3 and result.complete
    for name in ("report.html", "table.md", "demo.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    # The three that share the warm-up started from the very same network.
    warm = (tmp_path / "demo" / "warm-up" / "log.jsonl").read_text()
    for name in ("control", "selective", "stochastic"):
        assert (tmp_path / "demo" / name / "log.jsonl").read_text().startswith(warm)

    # Taken up again, nothing is trained anew.
    monkeypatch.setattr(demo, "gallery", lambda *_, **__: Figure())
    monkeypatch.setattr(demo, "write_report", lambda *_, **__: None)
    stamp = (tmp_path / "demo" / "control" / "last.safetensors").stat().st_mtime_ns
    assert demo.run_demo(config, resume=True, console=console).rows == result.rows
    assert (tmp_path / "demo" / "control" / "last.safetensors").stat().st_mtime_ns == stamp


def row(title: str, biased: float, unbiased: float, deceiving: float) -> Row:
    accuracy = {"biased": biased, "unbiased": unbiased, "deceiving": deceiving}
    return Row(title, accuracy, dict.fromkeys(accuracy, 0.0), {})


def test_claims_are_checked() -> None:
    good = {
        "standard": row("standard", 100, 50, 3),
        "control": row("control", 99, 97, 90),
        "selective": row("Selective ISNet", 97, 96.5, 96),
        "stochastic": row("Stochastic ISNet", 96, 96, 95.5),
    }
    assert all(claim.holds for claim in demo.check_claims(good))
    for name, bad in (
        ("standard", row("standard", 98.5, 50, 3)),
        ("standard", row("standard", 100, 50, 30)),
        ("selective", row("Selective ISNet", 97.6, 96.5, 96)),
        ("stochastic", row("Stochastic ISNet", 95, 94.9, 95)),
        ("control", row("control", 99, 97, 95.2)),
    ):
        assert sum(not claim.holds for claim in demo.check_claims({**good, name: bad})) >= 1
