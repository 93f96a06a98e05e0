"""A GPU's first run, tried on the CPU: its stages, its limits, and what its page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_emulated_ops import load_emulated_ops

from benchmarks import gpu_page, gpu_stages
from benchmarks.gpu_cases import Case, make_case
from benchmarks.gpu_first_run import STAGES, Options, Run, Stage, read_doctor, read_sanitizer, read_tests
from benchmarks.gpu_results import merged
from benchmarks.gpu_timing import measure
from lrpkernels.testing import CPU_OPS, emulated_cuda

ROOT = Path(__file__).resolve().parents[1]


def test_the_script_runs_and_names_what_it_drops(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DEVICE": "cpu",
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    stages = ["build", "config", "kernels", "memcheck"]
    command = ["bash", str(ROOT / "benchmarks" / "gpu_first_run.sh"), "--stages", *stages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(stage["name"], stage["state"]) for stage in results["stages"]] == [
        ("build", "dropped"), ("config", "done"), ("kernels", "done"), ("memcheck", "dropped")
    ]  # fmt: skip
    kernels = [row for row in results["rows"] if row["what"] == "kernel"]
    assert kernels and all(row["ms"] > 0 for row in kernels)
    assert all(row["error_ratio"] <= 1 for row in kernels if row["by"] == "lrpkernels")
    assert (tmp_path / "gpu.md").read_text().startswith("**The kernels were not checked")
    assert "not checked" in done.stdout and len(done.stdout) < 12_000
    assert "memcheck" in done.stdout and "dropped" in done.stdout


def test_a_whole_run_leaves_at_most_eight_files() -> None:
    assert len({stage.log for stage in STAGES}) + len({"rows.jsonl", "results.json", "gpu.md"}) <= 8


@pytest.mark.parametrize("stage", ["networks", "conv", "vit", "tf32", "graphs", "peers", "sanitized", "profile"])
def test_stages(stage: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    gpu_stages.main([stage, "--rows", str(path), "--device", "cpu", "--tiny"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by = ("recorded", "static", "graph", "auto", "fused")
    ours = [row for row in rows if row.get("by") in by and not row["what"].startswith("profile")]
    assert all("error" not in row and row["ratio"] > 0 for row in ours)
    page = gpu_page.page({"rows": rows, "stages": [], "device": "cpu", "date": ""})
    if stage == "sanitized":
        assert 50 < rows[-1]["value"] <= rows[-1]["of"]
    elif stage == "profile":
        steps = [row for row in rows if row["what"] == "profile"]
        assert [row["by"] for row in steps] == ["plain", "static", "recorded"] * 2
        assert all(row["kernels"] > 100 and row["busy_ms"] > 0 for row in steps)
        kernels = [row for row in rows if row["what"] == "profile kernel"]
        assert len(kernels) == 15 * len(steps) and all(0 < row["share"] < 1 for row in kernels)
        assert "GPU busy" in page and kernels[0]["kernel"] in page
    else:
        assert len(ours) >= 4
        assert "| network |" in page


@pytest.mark.filterwarnings("ignore::lrpkernels.functional.tuner.FusedKernelWarning")  # of tf32, beside a float32 bound
def test_the_tuner_s_choices_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the CUDA sources on the CPU, where convolutions have fused kernels."""
    load_emulated_ops()

    def small(*arguments: Any, **options: Any) -> Case:
        case = make_case(*arguments, **options)
        case.x, case.masks, case.labels = case.x[:1, :, 4:12, 4:12], case.masks[:1, :, 4:12, 4:12], case.labels[:1]
        return case

    monkeypatch.setattr(gpu_stages, "make_case", small)
    monkeypatch.setattr(gpu_stages, "CONV_NETWORKS", ("vgg16",))
    path = tmp_path / "rows.jsonl"
    with emulated_cuda():
        gpu_stages.main(["conv", "--rows", str(path), "--device", "cpu", "--tiny"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    choices = [row for row in rows if row["what"] == "choice"]
    assert choices and all(row["path"] in ("fused", "vendor") and row["key"] for row in choices)
    assert not [row for row in rows if row["what"] == "conv step" and "error" in row]
    fused = sum(row["path"] == "fused" for row in choices if row["precision"] == "fp32")
    count = sum(row["precision"] == "fp32" for row in choices)
    assert f"{fused} of {count}" in gpu_page.page({"rows": rows, "stages": [], "device": "cpu", "date": ""})


def _stage(name: str, code: str, limit: float = 60, **more: Any) -> Stage:
    return Stage(name, "log", limit, lambda options: [sys.executable, "-c", code], **more)


def _run(tmp_path: Path, *stages: Stage, budget: float = 100) -> tuple[bool, dict[str, dict[str, Any]], list[Any]]:
    run = Run(Options(tmp_path, "cuda", "9.0"), budget)
    good = run.all(stages)
    results = json.loads((tmp_path / "results.json").read_text())
    return good, {stage["name"]: stage for stage in results["stages"]}, results["rows"]


def test_a_stage_that_takes_too_long_is_ended_with_its_children_and_keeps_its_rows(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = (
        'import subprocess, sys, time; open(sys.argv[1], \'a\').write(\'{"what": "figure"}\\n{"what": \');'
        "subprocess.Popen(['sh', '-c', 'sleep 4; touch ' + sys.argv[2]]); time.sleep(60)"
    )
    slow = Stage("slow", "log", 2.0, lambda options: [sys.executable, "-c", code, str(options.rows), str(alive)])
    run = Run(Options(tmp_path, "cuda", "9.0"), 100)
    run._one(slow, slow.command(run.options) or [], 2.0)
    results = run.results()
    assert results["stages"][0]["state"] == "out of time" and results["stages"][0]["seconds"] < 20
    assert {"what": "figure"} in results["rows"]
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    left = [line for line in running if line.startswith("sh ") and str(alive) in line]
    assert not left


def test_stages_without_time_are_dropped_by_name_and_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    stages = (_stage("bad", "raise SystemExit('no GPU memory')"), _stage("good", "print(1)"))
    good, states, _ = _run(tmp_path, *stages)
    assert states["bad"]["state"] == "failed" and states["bad"]["reason"] == "no GPU memory"
    assert states["good"]["state"] == "done" and good
    _, states, _ = _run(tmp_path, *stages, budget=1)
    assert all(state["state"] == "dropped" and state["reason"] == "no time left" for state in states.values())


def test_without_an_extension_nothing_else_runs(tmp_path: Path) -> None:
    good, states, _ = _run(tmp_path, _stage("build", "raise SystemExit(1)"), _stage("doctor", "print(1)"))
    assert not good and states["doctor"]["reason"] == "the extension was not built"
    good, states, _ = _run(tmp_path, _stage("config", "raise SystemExit(1)"), _stage("doctor", "print(1)"))
    assert not good and states["doctor"]["reason"] == "the extension cannot be imported"


def _doctor(passed: bool, device: str = "cuda") -> list[dict[str, Any]]:
    checks = [
        {"device": device, "kernel": "ratio", "dtype": "float32", "max_error": 1e-7, "passed": True},
        {"device": device, "kernel": "affine", "dtype": "float32", "max_error": 1e-2, "passed": passed},
    ]
    return read_doctor("a warning\n" + json.dumps({"passed": passed, "checks": checks}, indent=2) + "\nthe end")


def _page(rows: list[dict[str, Any]]) -> str:
    return gpu_page.page({"device": "cuda", "date": "", "stages": [], "rows": rows})


def test_the_first_line_says_whether_the_kernels_are_right() -> None:
    assert _page(_doctor(True)).startswith("Doctor passed: 2 checks on cuda.")
    assert _page(_doctor(False)).startswith("**Doctor FAILED: 1 checks, affine (cuda, float32).")
    assert _page(_doctor(True, "cpu")).startswith("**The kernels were not checked: doctor ran on cpu alone.")
    assert _page([]).startswith("**The kernels were not checked: doctor was not run.")


def test_counts_and_failures_of_tests_are_read() -> None:
    text = (
        "[gw0] [ 33%] PASSED tests/test_gpu.py::test_a[x y-cuda] \n[gw1] [ 66%] FAILED tests/test_gpu.py::test_b[cuda] \n"
        "[gw1] [ 99%] SKIPPED tests/test_gpu.py::test_c[cuda] \nFAILED tests/test_gpu.py::test_b[cuda] - assert 1 == 2\n"
    )
    counts, failure = read_tests(text)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)
    assert failure["test"] == "tests/test_gpu.py::test_b[cuda]" and failure["error"] == "assert 1 == 2"
    (counts,) = read_tests(
        "tests/test_gpu.py::test_a[cpu] PASSED      [ 50%]\ntests/test_gpu.py::test_b PASSED [100%]\n"
    )
    assert (counts["passed"], counts["failed"]) == (2, 0)
    (found,) = read_sanitizer("calls watched: value 387, of 408\n========= ERROR SUMMARY: 3 errors\n")
    assert (found["summary"], found["watched"]) == ("ERROR SUMMARY: 3 errors", "387 of 408")


def test_the_watched_calls_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = gpu_stages.sanitized("cpu", True, seconds=0.0)
    assert row["value"] == len(CPU_OPS) < row["of"]


def _conv(auto: dict[str, float]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for network, ratio in auto.items():
        for by, value in (("vendor", 1.0), ("auto", ratio)):
            rows.append({"what": "conv step", "network": network, "precision": "bf16", "by": by, "ratio": value})
    return {"rows": rows}


@pytest.mark.parametrize(
    ("auto", "said"),
    [
        ({"a": 0.94, "b": 0.96, "c": 1.0, "d": 0.9}, "they stay the default"),
        ({"a": 0.96, "b": 0.96, "c": 1.0, "d": 0.9}, "they do not stay the default"),
        ({"a": 0.96, "b": 0.96}, "not decided"),
    ],
)
def test_the_rule_for_fused_convolutions(auto: dict[str, float], said: str) -> None:
    (line,) = gpu_page.decision(_conv(auto))
    assert line.startswith(f"bf16: {said}")


def test_figures_go_between_the_marks_but_not_those_of_a_dry_run(tmp_path: Path) -> None:
    path = tmp_path / "gpu.md"
    path.write_text(f"before\n{gpu_page.BEGIN}\nold\n{gpu_page.END}\nafter\n")
    results = {"device": "cuda", "date": "", "stages": [], "rows": _doctor(True)}
    with pytest.raises(ValueError, match="expected those of a run on a GPU"):
        gpu_page.write({**results, "device": "cpu"}, path)
    gpu_page.write(results, path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "Doctor passed" in text and "old" not in text
    page = gpu_page.PAGE.read_text()
    assert page.index(gpu_page.BEGIN) < page.index(gpu_page.END)


def test_a_later_run_s_stages_replace_an_earlier_one_s() -> None:
    def results(gpu: str = "H", **stages: str) -> dict[str, Any]:
        rows = [{"stage": "config", "what": "config", "gpu": gpu, "torch": "2"}]
        for name, state in stages.items():
            networks = {"done": "ab", "out of time": "a"}.get(state, "")
            rows += [{"stage": name, "what": name, "network": network, "run": str(len(stages))} for network in networks]
        entries = [{"name": name, "state": state} for name, state in {"config": "done", **stages}.items()]
        return {"device": "cuda", "date": str(len(stages)), "stages": entries, "rows": rows}

    first = results(doctor="done", steps="done", graphs="done", conv="done")
    found = merged(first, results(doctor="done", graphs="out of time", conv="dropped"))
    runs = {(row["stage"], row["network"]): row["run"] for row in found["rows"] if "run" in row}
    assert runs == {
        **dict.fromkeys([("doctor", "a"), ("doctor", "b"), ("graphs", "a")], "3"),
        **dict.fromkeys([("steps", "a"), ("steps", "b"), ("graphs", "b"), ("conv", "a"), ("conv", "b")], "4"),
    }
    assert {entry["name"]: entry["state"] for entry in found["stages"]}["conv"] == "done" and found["date"] == "3"
    assert merged(first) == first
    with pytest.raises(ValueError, match="expected runs on one card"):
        merged(first, results("other", doctor="done"))


def test_a_run_that_fails_is_a_row_beside_the_others() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory\nwith details")

    rows = measure({"plain": lambda: sum(range(1000)), "ours": fail}, "cpu", repeats=3)
    assert rows[0]["ratio"] == 1 and rows[0]["rounds"] == 3
    assert rows[1] == {"by": "ours", "error": "RuntimeError: out of memory"}
    rows = measure({"plain": fail, "ours": lambda: sum(range(1000))}, "cpu", repeats=3)
    assert "error" in rows[0] and "ratio" not in rows[1] and rows[1]["ms"] > 0
