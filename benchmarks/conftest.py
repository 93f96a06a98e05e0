"""Options of benchmarks/bench_kernels.py."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lrpkernels benchmarks")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    group.addoption("--threads", type=int, default=1, help="of the CPU")


@pytest.fixture
def kernel_options(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Device and dtype."""
    torch.set_num_threads(request.config.getoption("--threads"))
    return request.config.getoption("--device"), request.config.getoption("--dtype")
