"""The kernel tests again under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import SANITIZERS, sanitizer_environment

TESTS = Path(__file__).resolve().parent
FAMILIES = ["affine", "pointwise", "pool", "conv", "conv_weight", "heatmap", "sample_norm"]


# Every kernel in float32 and descending order, in one case of so many: numbers that share no factor with those of the layers,
# weight sets, layouts and alignments, so that all of these come up. All cases, dtypes and orders take minutes.
SHARES = {"address": "5", "thread": "11"}
CASES = [pytest.param("float32-1", id="quick"), pytest.param("", id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, sanitizer: str, cases: str) -> None:
    few = {"SHIM_FLOAT_ONLY": "1", "SHIM_SHARE": SHARES[sanitizer]} if cases else {}
    run(f"test_cuda_{family}.py", sanitizer, cases, **few)


def test_no_size_overflows() -> None:
    """What launchers compute from sizes that they refuse."""
    run("test_cuda_sizes.py", "address", SHIM_FLOAT_ONLY="1")


def run(tests: str, sanitizer: str, cases: str = "", **settings: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "--noconftest", "-k", cases]
    result = subprocess.run(
        [*command, tests],
        cwd=TESTS,
        env={**sanitizer_environment(sanitizer), **settings},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[:6000]
    assert " passed" in result.stdout
