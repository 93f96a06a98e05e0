"""The shim catches the mistakes that hardware forgives: tests of the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import sanitizer_environment
from cuda_on_cpu.build import compile_kernels

TESTS = Path(__file__).resolve().parent


def run(number: int, *arguments: str, sanitizer: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cuda_on_cpu.run_misuse", str(number), *arguments],
        cwd=TESTS,
        env=sanitizer_environment(sanitizer) if sanitizer else None,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_correct_kernel_runs() -> None:
    result = run(0)
    assert result.returncode == 0, result.stderr
    assert [float(x) for x in result.stdout.split()] == [0, *range(32, 0, -1)]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "__syncthreads is not reached by all threads"),
        (2, "the threads meet at different __syncthreads"),
        (3, "a mask names a lane that has exited"),
        (7, "more than 48 KiB of static shared memory"),
        (8, "misaligned global access"),
    ],
    ids=["partial barrier", "two barriers", "lane missing", "too much shared", "misaligned"],
)
def test_misuse_aborts(number: int, text: str) -> None:
    result = run(number)
    assert result.returncode < 0
    assert text in result.stderr


def test_unset_shared_memory_is_nan() -> None:
    values = run(4).stdout.split()[1:]
    assert values == ["1.0"] * 16 + ["nan"] * 16


def test_an_asynchronous_copy_is_not_there_before_the_wait() -> None:
    assert run(9).stdout.split()[1:] == ["nan"] * 32


def test_launch_limits() -> None:
    """2048 threads are refused with cudaErrorInvalidConfiguration."""
    assert run(0, "2048").stdout.split()[0] == "9"


def test_address_sanitizer_sees_shared_memory() -> None:
    result = run(5, sanitizer="address")
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer: use-after-poison" in result.stderr and "beyond_shared" in result.stderr


def test_thread_sanitizer_sees_a_race() -> None:
    result = run(6, sanitizer="thread")
    assert result.returncode == 66
    assert "SUMMARY: ThreadSanitizer: data race" in result.stderr and "in race" in result.stderr
    assert run(0, sanitizer="thread").returncode == 0


def test_a_patch_must_apply() -> None:
    with pytest.raises(ValueError, match="must occur exactly once, occurs 0 times"):
        compile_kernels("pointwise", patches=[("cuda/pointwise.cu", "no such text", "")])
