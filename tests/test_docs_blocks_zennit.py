"""The code of docs/coming_from_zennit.md runs, and says what it says."""

from __future__ import annotations

from pathlib import Path

import peers  # noqa: F401 (zennit's canonizers import torchvision)
from doc_blocks import ROOT, blocks, run

PAGE = ROOT / "docs" / "coming_from_zennit.md"


def test_the_page_runs(tmp_path: Path) -> None:
    names, _ = run(PAGE, tmp_path)
    assert {"theirs", "attr", "tokens", "losses"} <= names.keys()
    assert [block for block in blocks(PAGE) if block.comment == "no-run"]  # what needs other packages
    assert (tmp_path / "lightning.ckpt").exists()
