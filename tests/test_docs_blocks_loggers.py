"""The page on loggers and Lightning runs as it is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import ROOT, run


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path: Path) -> None:
    names, printed = run(ROOT / "docs" / "loggers.md", tmp_path)
    assert list((tmp_path / "run" / "tensorboard").iterdir()) and "NaturalRange" in printed
    assert names["again"].ranges == names["module"].ranges and 0 <= names["scores"]["test_background_share"] <= 1
    assert [tuple(part["heatmap"].shape) for part in names["predictions"]] == [(8, 1, 16, 16)] * 3
