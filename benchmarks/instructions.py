"""Instructions of an ISNet step and of heatmaps, counted by valgrind's callgrind: the same from run to run, whatever else the machine does.

    python -m benchmarks.instructions --json build/instructions.json
    python -m benchmarks.compare build/instructions.json

A guard against drift, no measure of time: a small residual network, whose steps are mostly calls, in one process that prepares everything
uncounted and counts each run from its begin to its end. Under SSE4: valgrind emulates the fused multiplications of wider instruction sets
in functions of its own, and takes minutes. Needs valgrind with its header and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.networks import residual
from benchmarks.step import steps
from lrpkernels.tools.bench import COMPOSITES, heatmap, input_gradient

_SHAPE = {"batch": 2, "size": 32, "classes": 10}
_LONGEST = 900  # seconds
_BASELINES = ("plain step", "forward + input gradient")
_FIXED = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
_CLIENT = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def run_counted(library: Path) -> None:
    """The runs themselves, in a process under callgrind; ``library`` tells it when to count."""
    torch.set_num_threads(1)
    training = steps("", "selective", **_SHAPE, training=True, device="cpu", model=residual(8, 1, 10), static=True)
    torch.manual_seed(0)
    model = residual(8, 1, 10).eval().requires_grad_(False)
    x = torch.rand(_SHAPE["batch"], 3, _SHAPE["size"], _SHAPE["size"])
    runs = training | {"forward + input gradient": input_gradient(model, x)}
    runs |= {name: heatmap(model, x, COMPOSITES[name][1]()) for name in ("epsilon", "EpsilonPlus")}
    callgrind = ctypes.CDLL(str(library))
    for run in runs.values():
        run()
        run()
    gc.collect()
    gc.disable()
    for name, run in runs.items():
        callgrind.begin()
        run()
        callgrind.end(name.encode())


def counts(folder: Path) -> dict[str, int]:
    """Name of each run -> its instructions, from the files that callgrind has written."""
    found = {}
    for path in sorted(folder.glob("counts.*"), key=lambda path: int(path.suffix[1:])):  # in the order of the runs
        text = path.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if name and total:
            found[name[1]] = int(total[1])
    return found


def missing() -> str:
    """What is lacking here, in one line; an empty string: nothing."""
    compiler = os.environ.get("CC", "cc")
    lacking = [tool for tool in ("valgrind", compiler) if shutil.which(tool) is None]
    if not lacking and not _compiles(compiler, Path(os.devnull)):
        lacking = ["valgrind/callgrind.h"]
    return f"no {', '.join(lacking)}: no instructions counted (apt-get install valgrind)" if lacking else ""


def _compiles(compiler: str, target: Path) -> bool:
    command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(target)]
    return subprocess.run(command, input=_CLIENT, text=True, stderr=subprocess.DEVNULL, check=False).returncode == 0


def measure() -> list[dict[str, Any]]:
    """Rows as of benchmarks.step, with ``millions`` of instructions in place of seconds.

    Raises:
        RuntimeError: callgrind has failed, in one line.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "client.so"
        _compiles(os.environ.get("CC", "cc"), library)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / 'counts'}"]
        worker = [sys.executable, "-m", "benchmarks.instructions", "--worker", str(library)]
        try:
            done = subprocess.run(
                [*valgrind, *worker],
                env=os.environ | _FIXED,
                capture_output=True,
                text=True,
                timeout=_LONGEST,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"callgrind was ended after {_LONGEST} s: no instructions counted") from None
        except subprocess.CalledProcessError as error:
            why = (error.stderr.strip().splitlines() or [""])[-1]
            raise RuntimeError(
                f"callgrind ended with status {error.returncode}, no instructions counted: {why}"
            ) from None
        found = counts(folder)
        if not found:
            raise RuntimeError(f"callgrind has counted nothing: {(done.stderr.strip().splitlines() or [''])[-1]}")
    rows, baseline = [], 0
    for run, count in found.items():
        baseline = count if run in _BASELINES else baseline
        rows.append({"network": "residual", "name": run, "millions": count / 1e6, "ratio": count / baseline})
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        run_counted(options.worker)
        return []
    rows: list[dict[str, Any]] = []
    try:
        lacking = missing()
        if lacking:
            raise RuntimeError(lacking)
        rows = measure()
    except RuntimeError as error:  # a report, which fails nothing
        print(error)
    if rows:
        print(f"{'what':<30} {'millions':>9} {'ratio':>7}")
    for row in rows:
        print(f"{row['name']:<30} {row['millions']:9.2f} {row['ratio']:7.3f}")
    options.device = "cpu"
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
