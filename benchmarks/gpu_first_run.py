"""A GPU's first run: stages in order of importance, each a process with a time limit; benchmarks/gpu_first_run.sh starts it.

What is known is on disk at once: ``rows.jsonl`` row by row, ``results.json`` and ``gpu.md`` after every stage, beside five logs.
``python -m benchmarks.gpu_page results.json`` takes the figures into docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_page

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Where and how stages run.

    Attributes:
        out: folder of the results.
        device: "cuda" or "cpu"; on the CPU nothing is built and networks are tiny.
        arch: compute capability to compile for.
    """

    out: Path
    device: str
    arch: str

    @property
    def rows(self) -> Path:
        """The file of all rows, one JSON object per line."""
        return self.out / "rows.jsonl"


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: as in the results.
        log: name of the log that it shares with stages of its kind.
        limit: seconds.
        command: what runs; None: what it needs is not there.
        read: rows from what it printed; None: it writes its own.
        needs: why it cannot run where ``command`` is None.
    """

    name: str
    log: str
    limit: float
    command: Callable[[Options], list[str] | None]
    read: Callable[[str], list[Row]] | None = None
    needs: str = ""


def _build(options: Options) -> list[str] | None:
    return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"] if options.device == "cuda" else None


def _doctor(options: Options) -> list[str]:
    return [sys.executable, "-m", "lrpkernels", "doctor", "--json"]


def _tests(options: Options) -> list[str]:
    chosen = ["-m", "gpu", "-n", "4"] if options.device == "cuda" else ["-k", "cpu"]
    return [sys.executable, "-m", "pytest", "tests/test_gpu.py", *chosen, "-v", "-p", "no:cacheprovider", "--tb=short"]


def _measure(name: str) -> Callable[[Options], list[str]]:
    def command(options: Options) -> list[str]:
        tiny = [] if options.device == "cuda" else ["--tiny"]
        rows = ["--rows", str(options.rows), "--device", options.device]
        return [sys.executable, "-m", "benchmarks.gpu_stages", name, *rows, *tiny]

    return command


def _sanitizer(tool: str) -> Callable[[Options], list[str] | None]:
    def command(options: Options) -> list[str] | None:
        program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if program is None or options.device != "cuda":
            return None
        # What PyTorch asks CUDA in vain, and handles, is no error.
        quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
        watch = ["--tool", tool, *quiet, "--error-exitcode", "9", "--print-limit", "20"]
        return [program, *watch, *_measure("sanitized")(options)]

    return command


def read_doctor(text: str) -> list[Row]:
    """One row for the whole, one for each check that failed, and the largest error of each dtype and device."""
    found, _ = json.JSONDecoder().raw_decode(text, text.index("{\n"))
    checks = found["checks"]
    devices = sorted({check["device"] for check in checks})
    rows: list[Row] = [{"what": "doctor", "passed": found["passed"], "checks": len(checks), "devices": devices}]
    rows += [{"what": "wrong kernel", **check} for check in checks if not check["passed"]]
    groups = sorted({(check["device"], check["dtype"]) for check in checks})
    for device, dtype in groups:
        errors = [check["max_error"] for check in checks if (check["device"], check["dtype"]) == (device, dtype)]
        rows.append({"what": "doctor error", "device": device, "dtype": dtype, "value": max(errors)})
    return rows


def read_tests(text: str) -> list[Row]:
    """The counts and, of each test that failed, its name and the first line of why; also of a run that was ended."""
    told = re.findall(
        r"(?m)^(?:\[gw\d+\].*?(PASSED|FAILED|ERROR|SKIPPED) |\S+::.* (PASSED|FAILED|ERROR|SKIPPED)(?: |$))", text
    )
    words = [one or other for one, other in told]
    failures = re.findall(r"(?m)^(?:FAILED|ERROR) (\S+::.*?)(?: - (.*))?$", text)
    row: Row = {"what": "tests", "passed": words.count("PASSED"), "skipped": words.count("SKIPPED")}
    row["failed"] = max(words.count("FAILED") + words.count("ERROR"), len(failures))
    return [row, *({"what": "failed test", "test": test, "error": why} for test, why in failures)]


def read_sanitizer(text: str) -> list[Row]:
    """The tool's summary, and how many of the planned calls it saw."""
    lines = [line.strip("= ").strip() for line in text.splitlines() if "SUMMARY" in line]
    watched = re.search(r"calls watched: value (\d+), of (\d+)", text)
    row: Row = {"what": "sanitizer", "summary": lines[-1] if lines else "no summary"}
    return [{**row, "watched": f"{watched[1]} of {watched[2]}"} if watched else row]


STAGES = (
    Stage("build", "build", 270, _build, needs="the CPU's kernels are built already"),
    Stage("config", "build", 40, _measure("config")),
    Stage("doctor", "checks", 100, _doctor, read_doctor),
    Stage("tests", "checks", 90, _tests, read_tests),
    Stage("networks", "timings", 70, _measure("networks")),
    Stage("conv", "timings", 80, _measure("conv")),
    Stage("kernels", "timings", 45, _measure("kernels")),
    Stage("vit", "timings", 45, _measure("vit")),
    Stage("tf32", "timings", 45, _measure("tf32")),
    Stage("graphs", "timings", 70, _measure("graphs")),
    Stage("peers", "peers", 45, _measure("peers")),
    Stage("compile", "peers", 60, _measure("compile")),
    Stage("memcheck", "sanitizer", 50, _sanitizer("memcheck"), read_sanitizer, "compute-sanitizer is not there"),
    Stage("racecheck", "sanitizer", 50, _sanitizer("racecheck"), read_sanitizer, "compute-sanitizer is not there"),
    Stage("profile", "timings", 30, _measure("profile")),
)
_LEAST = 8.0  # seconds in which a stage could say anything


def link_folder(options: Options) -> str:
    """A folder with libcudart.so where a toolkit made of wheels has it under a version's name alone; "" if there is none."""
    found = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libcudart.so.*")]
    if options.device != "cuda" or not found:
        return ""
    folder = ROOT / "build" / "gpu_link"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(found[0].resolve())
    return str(folder)


class Run:
    """All stages within a budget.

    Args:
        options: where and how.
        budget: seconds in all.
        clock: seconds; tests give their own.
    """

    def __init__(self, options: Options, budget: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.options, self.budget, self.clock = options, budget, clock
        self.begun = clock()
        paths = {
            name: os.pathsep.join(filter(None, (first, os.environ.get(name))))
            for name, first in (("PATH", str(Path(sys.executable).parent)), ("LIBRARY_PATH", link_folder(options)))
        }
        cores = str(os.cpu_count() or 1)
        self.environment = {**os.environ, **paths, "PYTHONUNBUFFERED": "1", "MAX_JOBS": cores}
        self.environment.update(LRPKERNELS_CUDA="1", TORCH_CUDA_ARCH_LIST=options.arch)
        options.out.mkdir(parents=True, exist_ok=True)
        for path in (*options.out.glob("*.log"), options.rows):
            path.unlink(missing_ok=True)

    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.budget - (self.clock() - self.begun)

    def all(self, stages: Sequence[Stage]) -> bool:
        """Runs the stages and writes the results; whether kernels were built, found right, and all tests passed."""
        stopped = ""
        for stage in stages:
            command = stage.command(self.options)
            limit = min(stage.limit, self.left())
            if stopped or command is None or limit < _LEAST:
                reason = stopped or (stage.needs if command is None else "no time left")
                self._note({"name": stage.name, "state": "dropped", "reason": reason, "seconds": 0.0})
                continue
            self._one(stage, command, limit)
            stopped = self._reason_to_stop(stage)
        return self._is_good()

    def _one(self, stage: Stage, command: list[str], limit: float) -> None:
        print(f"-- {stage.name} (at {self.clock() - self.begun:.0f} s, at most {limit:.0f} s)", flush=True)
        begun = self.clock()
        log = self.options.out / f"{stage.log}.log"
        with log.open("a") as file:
            file.write(f"== {stage.name}: {' '.join(command)}\n")
            file.flush()
            start = file.tell()
            code = self._process(command, stage, file, limit)
        text = log.read_text(errors="replace")[start:]
        if code is None:
            state, reason = "out of time", f"stopped after {limit:.0f} s"
        else:
            state = "done" if code == 0 else "failed"
            reason = "" if code == 0 else _last_line(text)
        if stage.read is not None:
            try:
                self._add([{"stage": stage.name, **row} for row in stage.read(text)])
            except (ValueError, KeyError) as error:
                reason = reason or f"its output could not be read: {error}"
        seconds = self.clock() - begun
        self._note({"name": stage.name, "state": state, "reason": reason, "code": code, "seconds": seconds})

    def _process(self, command: list[str], stage: Stage, file: Any, limit: float) -> int | None:
        """The exit code; None if the process and what it started had to be ended."""
        environment = dict(self.environment)
        if stage.log == "sanitizer":
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # an access beyond a tensor must leave its allocation
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            for kind in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, kind)
                    process.wait(timeout=3)
                except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                    continue

    def _reason_to_stop(self, stage: Stage) -> str:
        rows = self.results()
        found = {entry["name"]: entry for entry in rows["stages"]}
        if stage.name == "build" and found["build"]["state"] != "done":
            return "the extension was not built"
        config = [row for row in rows["rows"] if row["what"] == "config"]
        if stage.name == "config" and self.options.device == "cuda":
            if not config:
                return "the extension cannot be imported"
            if not config[0]["cuda_kernels"] or config[0]["gpu"] is None:
                return "no CUDA kernels, or no GPU"
        return ""

    def _add(self, rows: list[Row]) -> None:
        path = self.options.rows
        cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # by the end of a process that was writing
        with path.open("a") as file:
            file.write("\n" if cut else "")
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _note(self, entry: Row) -> None:
        self._add([{"stage": entry["name"], "what": "stage", **entry}])
        print(f"   {entry['name']}: {entry['state']} {entry['reason']} ({entry['seconds']:.0f} s)", flush=True)
        results = self.results()
        (self.options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (self.options.out / "gpu.md").write_text(gpu_page.page(results) + "\n")

    def results(self) -> dict[str, Any]:
        """All that is known: the stages and the rows of all."""
        lines = self.options.rows.read_text().splitlines() if self.options.rows.exists() else []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:  # of a process that was ended as it wrote
                continue
        stages = [
            {k: v for k, v in row.items() if k not in ("what", "stage")} for row in rows if row["what"] == "stage"
        ]
        kept = [row for row in rows if row["what"] != "stage"]
        return {
            "device": self.options.device, "arch": self.options.arch, "budget_s": self.budget, "date": time.strftime("%Y-%m-%d"),
            "seconds": self.clock() - self.begun, "stages": stages, "rows": kept,
        }  # fmt: skip

    def _is_good(self) -> bool:
        wanted = ("build", "config", "doctor", "tests")
        stages = [entry for entry in self.results()["stages"] if entry["name"] in wanted]
        return all(entry["state"] == "done" or self.options.device == "cpu" for entry in stages)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing printed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--arch", default="9.0", help="compute capability to compile for")
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument(
        "--stages", nargs="+", choices=[stage.name for stage in STAGES], help="these alone, in this order"
    )
    options = parser.parse_args(arguments)
    run = Run(Options(options.out.resolve(), options.device, options.arch), options.budget)
    by_name = {stage.name: stage for stage in STAGES}
    good = run.all([by_name[name] for name in options.stages or by_name])
    print(gpu_page.summary(run.results()), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
