"""The count of instructions: what is read of callgrind's files, and what is said where it is not there."""

import json
from pathlib import Path

import pytest

from benchmarks import compare, instructions


def test_counts_are_read_in_the_order_of_the_runs(tmp_path: Path) -> None:
    for index, name, total in ((10, "epsilon", 30), (2, "ISNet selective step", 20), (1, "plain step", 10)):
        (tmp_path / f"counts.{index}").write_text(
            f"version: 1\ndesc: Trigger: Client Request: {name}\ntotals: {total}\n"
        )
    (tmp_path / "counts").write_text("desc: Trigger: Program termination\ntotals: 0\n")
    (tmp_path / "counts.11").write_text("desc: Trigger: Program termination\ntotals: 5\n")
    assert list(instructions.counts(tmp_path).items()) == [
        ("plain step", 10),
        ("ISNet selective step", 20),
        ("epsilon", 30),
    ]


def test_without_valgrind_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "instructions.json"
    assert instructions.main(["--json", str(path)]) == []
    assert capsys.readouterr().out.startswith("no valgrind, cc: no instructions counted (apt-get install valgrind)\n")
    compare.main([str(path)])


def test_a_count_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions, "missing", lambda: "")
    (tmp_path / "valgrind").write_text("#!/bin/sh\necho first >&2\necho vex: unhandled instruction >&2\nexit 3\n")
    (tmp_path / "valgrind").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert instructions.main([]) == []
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "callgrind ended with status 3, no instructions counted: vex: unhandled instruction"


def test_a_drift_of_instructions_is_marked_at_one_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"network": "residual", "name": "plain step", "millions": 20.3, "ratio": 1.0},
        {"network": "residual", "name": "epsilon", "millions": 30.1, "ratio": 1.5},
    ]
    path, accepted = tmp_path / "new.json", tmp_path / "accepted.json"
    path.write_text(json.dumps({"rows": rows}))
    before = {
        "plain step, M instructions": 20.0,
        "epsilon, M instructions": 30.0,
        "epsilon, ratio of instructions": 1.5,
    }
    accepted.write_text(json.dumps({f"residual, {name}": value for name, value in before.items()}))
    compare.main([str(path), "--accepted", str(accepted)])
    plain, epsilon, ratio = capsys.readouterr().out.splitlines()[2:]
    assert plain.endswith("| 20.000 | 20.300 | +1.5 % ! |")
    assert epsilon.endswith("| 30.000 | 30.100 | +0.3 % |") and ratio.endswith("| 1.500 | 1.500 | +0.0 % |")
