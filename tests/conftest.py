"""Settings shared by all tests."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from the same random state, with one thread, and leaves torch's settings as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# Networks and segmenters of the tests, which settings in files may name (isnet/factories.py).
OWN_CODE = ("tests", "test_isnet_own_images", "test_isnet_cli", "test_isnet_faster_isnet", "small_network", "my_nets")
os.environ["ISNET_TRUST"] = ",".join(OWN_CODE)
PARTS = {"lines": "num_statements", "branches": "num_branches"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --cov: one line per package, not one per file."""
    if not config.getoption("cov_source", None):
        return
    import coverage

    measured = coverage.Coverage()
    measured.load()
    page = Path(measured.config.data_file).with_suffix(".json")
    for package in ("lrpkernels", "isnet"):
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin
        try:
            measured.json_report(outfile=str(page), include=[f"{Path(spec.origin).parent}/*"])
        except coverage.CoverageException as error:  # these tests do not import it
            terminalreporter.write_line(f"coverage of {package}: {error}")
            continue
        total = json.loads(page.read_text())["totals"]
        lines, branches = (100 * total[f"covered_{what}"] / total[of] for what, of in PARTS.items())
        terminalreporter.write_line(f"coverage of {package}: {lines:.1f} % of lines, {branches:.1f} % of branches")
