"""The kernel tests again under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import SANITIZERS, SLOW, sanitizer_environment

TESTS = Path(__file__).resolve().parent
FAMILIES = ["affine", "pointwise", "pool", "conv", "conv_weight", "heatmap_loss"]


@pytest.mark.skipif(not SLOW, reason="minutes: LRPKERNELS_SLOW_TESTS=1 runs it; test_cuda_shim.py has the quick ones")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, sanitizer: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "--noconftest"]
    result = subprocess.run(
        [*command, f"test_cuda_{family}.py"],
        cwd=TESTS,
        env={**sanitizer_environment(sanitizer), "LRPKERNELS_SLOW_TESTS": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[:6000]
