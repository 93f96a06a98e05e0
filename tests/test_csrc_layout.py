"""Which folder of csrc may include which: common/ knows neither cpu/ nor cuda/, and these do not know each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
MAY_INCLUDE = {"common": {"common"}, "cpu": {"common", "cpu"}, "cuda": {"common", "cuda"}}
SOURCES = sorted(path for folder in MAY_INCLUDE for path in (CSRC / folder).iterdir())
SHIM = "cuda_shim.h"  # what the tests put in the place of CUDA's headers


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_a_folder_includes_what_stands_below_it(source: Path) -> None:
    folder = source.parent.name
    for form, name in re.findall(r'#include ([<"])([^>"]+)[>"]', source.read_text()):
        if form == '"' and name != SHIM:
            included = (source.parent / name).resolve()
            assert included.exists(), name
            assert included.parent.name in MAY_INCLUDE[folder], name
        elif folder != "cuda":
            assert not name.startswith("cuda"), name


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_every_family_has_one_stem(folder: str) -> None:
    """A source of kernels belongs to the family whose host side is common/<family>_ops.h, and is named after it."""
    families = {path.name.removesuffix("_ops.h") for path in (CSRC / "common").glob("*_ops.h")}
    for path in (CSRC / folder).iterdir():
        if path.suffix in (".cu", ".cpp") and path.name != "register.cpp":
            assert any(f"{path.stem}_".startswith(f"{family}_") for family in families), path.name
