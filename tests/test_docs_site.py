"""The documentation builds as a site without warnings, and its notebooks run as they are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from doc_blocks import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert result.returncode == 0, result.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert pages >= {"index.html", "quickstart.html", "api/lrpkernels.html", "api/commands.html", "changelog.html"}
    html = (tmp_path / "site" / "api" / "commands.html").read_text()
    assert all(text in html for text in ("isnet train", "--data", "lrpkernels doctor"))
    sources = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert not any('src="http' in text or 'rel="stylesheet" href="http' in text for text in sources), "offline"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    shown = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(shown.cells, run.cells, strict=True):
        if before.cell_type == "code":
            assert len(before.outputs) == len(_shown(after.outputs)), before.source
            assert before.outputs == _shown(before.outputs), "warnings, with paths of the machine that ran it"


def _shown(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What a notebook keeps of its outputs: all but warnings, which name places of this machine."""
    return [output for output in outputs if output.get("name") != "stderr"]
