"""The memory-bound CUDA kernels move little more than they must, counted sector by sector on the CPU shim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cuda_on_cpu import slow_unless

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.traffic import calls, measure


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(name, marks=slow_unless(name == "float32"))
        for name in ("float32", "bfloat16", "float16", "float64")
    ],
)
def test_traffic(dtype: str) -> None:
    for call in calls([dtype]):
        if call.family == "heatmap_loss":
            continue  # reads its rows several times by design; they fit the second-level cache
        row = measure(call)
        assert row.mebibytes >= 1
        assert row.memory <= 1.05, row
        assert row.sectors >= 0.95, row
        if call.family == "pointwise" or call.layout == "NCHW":  # channels-last windows overlap between blocks
            assert row.blocks <= 1.05, row


def test_the_count_is_exact() -> None:
    """ratio reads three tensors and writes one: nothing else, no sector in part."""
    row = next(measure(call) for call in calls(["float32"]) if call.name == "ratio")
    assert (row.memory, row.blocks, row.lanes, row.sectors) == (1, 1, 1, 1)
