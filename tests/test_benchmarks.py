"""The benchmarks' own arithmetic, and that each runs at toy size."""

import json
from pathlib import Path

import pytest

from benchmarks import compare, memory, step
from benchmarks.timing import alternate


def test_ratios_are_medians_over_pairs() -> None:
    clock = iter(
        [0, 0] + [0, 1, 0, 2] * 2 + [0, 2, 0, 8]
    )  # the warm-up's starts, then three pairs: start, end, start, end
    plain, other = alternate({"a": lambda: None, "b": lambda: None}, repeats=3, warmup=1, read=lambda: next(clock))
    assert plain.ratio == 1 and other.ratio == 2 and (other.low, other.high) == (2, 4)


def test_floors() -> None:
    assert [step.floor(v, 10, 1) for v in ("selective", "dual", "original")] == [2, 4, 11]
    assert step.floor("stochastic", 1000, 4) == 1.25


@pytest.mark.parametrize("options", [[], ["--variant", "dual"], ["--every", "2", "--autocast"]], ids=str)
def test_steps_run_and_are_compared(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path, accepted = tmp_path / "step.json", tmp_path / "accepted.json"
    tiny = ["--networks", "resnet18", "--batch", "2", "--size", "32", "--repeats", "3"]
    rows = step.main([*tiny, *options, "--json", str(path)])
    assert [row["ratio"] == 1 for row in rows] == [True, False]
    new = compare.main([str(path), "--accepted", str(accepted), "--accept"])
    assert len(new) == 1 and "| new |" in capsys.readouterr().out
    (what,) = json.loads(accepted.read_text())
    accepted.write_text(json.dumps({what: 2 * new[what]}))
    compare.main([str(path), "--accepted", str(accepted)])
    assert "-50.0 % !" in capsys.readouterr().out


def test_memory_counts_what_a_run_holds() -> None:
    rows = memory.main(["--networks", "resnet18", "--batch", "2", "--size", "96"])
    found = {row["what"]: row["bytes"] for row in rows}
    assert found["plain"] > 4 * 11e6  # the gradients of ResNet18
    assert found["plain"] < found["selective"] < found["dual"] and found["selective"] < found["original"]
