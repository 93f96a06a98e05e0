"""Folders as people have them: the right table, or one line that names the file; never a silent misreading."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hostile import codes, images, lay, mask, pairs, png

from isnet.data import DataError, FileRef, read_table
from isnet.data.sets import tree

NFC, NFD = (unicodedata.normalize(form, "Lungenentzündung") for form in ("NFC", "NFD"))
T, V = "train", "validation"

# Files -> image: (split, class, mask), and what else is told.
READ: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str, str | None]], dict[str, int]]] = {
    "class folders": (images("a/1.png", "b/1.png"), {"a/1.png": (T, "a", None), "b/1.png": (T, "b", None)}, {}),
    "radiography database": (
        images("COVID/images/COVID-1.png", "COVID/masks/COVID-1.png", "Normal/images/N.png", "Normal/masks/N.png")
        | {"COVID.metadata.xlsx": b"PK\3\4", "README.md.txt": "x"},
        {
            "COVID/images/COVID-1.png": (T, "COVID", "COVID/masks/COVID-1.png"),
            "Normal/images/N.png": (T, "Normal", "Normal/masks/N.png"),
        },
        {"files-left-out": 2},
    ),
    "splits over it": (
        images("train/a/images/1.png", "train/a/masks/1.png", "val/b/images/1.png", "val/b/masks/1_mask.png"),
        {
            "train/a/images/1.png": (T, "a", "train/a/masks/1.png"),
            "val/b/images/1.png": (V, "b", "val/b/masks/1_mask.png"),
        },
        {},
    ),
    "images and masks in each split": (
        images("train/images/a/1.png", "train/masks/a/1.png", "Valid/images/b/1.png", "Valid/masks/b/1.png"),
        {"train/images/a/1.png": (T, "a", "train/masks/a/1.png"), "Valid/images/b/1.png": (V, "b", "Valid/masks/b/1.png")},
        {},
    ),
    "masks below the class alone": (
        images("a/1.png", "a/masks/1.png", "b/2.png", "b/Masks/2.png"),
        {"a/1.png": (T, "a", "a/masks/1.png"), "b/2.png": (T, "b", "b/Masks/2.png")},
        {},
    ),
    "folders in capitals": (
        images("Images/a/1.png", "MASKS/a/1.png"),
        {"Images/a/1.png": (T, "a", "MASKS/a/1.png")},
        {},
    ),
    "masks beside images": (
        images("a/p (1).png", "a/p (1)_mask.png", "b/q.png", "b/q_mask.bmp"),
        {"a/p (1).png": (T, "a", "a/p (1)_mask.png"), "b/q.png": (T, "b", "b/q_mask.bmp")},
        {"masks-beside-images": 2},
    ),
    "an image that ends in _mask alone": (images("a/no_mask.png"), {"a/no_mask.png": (T, "a", None)}, {}),
    "exact names first": (
        images("images/a/p.png", "images/a/p_mask.png", "masks/a/p.png", "masks/a/p_mask.png"),
        {
            "images/a/p.png": (T, "a", "masks/a/p.png"),
            "images/a/p_mask.png": (T, "a", "masks/a/p_mask.png"),
        },
        {},
    ),
    "exact suffixes first": (
        images("images/a/0.png", "images/a/0.jpg", "masks/a/0.png", "masks/a/0.jpg"),
        {"images/a/0.png": (T, "a", "masks/a/0.png"), "images/a/0.jpg": (T, "a", "masks/a/0.jpg")},
        {},
    ),
    "another suffix": (
        images("images/a/0.jpeg", "masks/a/0.png"),
        {"images/a/0.jpeg": (T, "a", "masks/a/0.png")},
        {},
    ),
    "one suffix more": (
        images("images/a/0.dcm", "masks/a/0.dcm.png"),
        {"images/a/0.dcm": (T, "a", "masks/a/0.dcm.png")},
        {},
    ),
    "composed and decomposed": (
        images(f"images/{NFC}/ä.png".replace("ä", NFC), f"masks/{NFD}/{NFD}.png"),
        {f"images/{NFC}/{NFC}.png": (T, NFC, f"masks/{NFD}/{NFD}.png")},
        {},
    ),
    "a class in both forms": (
        images(f"train/{NFC}/1.png", f"test/{NFD}/1.png"),
        {f"train/{NFC}/1.png": (T, NFC, None), f"test/{NFD}/1.png": ("test", NFC, None)},
        {},
    ),
    "masks in other case": (
        images("images/a/P1.PNG", "masks/A/p1.png"),
        {"images/a/P1.PNG": (T, "a", "masks/A/p1.png")},
        {},
    ),
    "masks without an image": (
        images("images/a/1.png", "masks/a/1.png", "masks/a/2.png", "masks/b/1.png"),
        {"images/a/1.png": (T, "a", "masks/a/1.png")},
        {"masks-without-image": 2},
    ),
    "no suffix": (
        {"a/IM0001": png(1), "a/IM0002": b"text", "a/1.2.840.5": png(2), "masks/a/1.2.840.5.png": mask(), "masks/a/IM0001": mask()},
        {"a/IM0001": (T, "a", "masks/a/IM0001"), "a/1.2.840.5": (T, "a", "masks/a/1.2.840.5.png")},
        {"files-left-out": 1},
    ),
    "unknown suffix, known content": (
        {"a/x.IMA": png(1), "a/y.dat": png(2), "masks/a/x.png": mask(), "a/z.dat": b"\0" * 99},
        {"a/x.IMA": (T, "a", "masks/a/x.png"), "a/y.dat": (T, "a", None)},
        {"files-left-out": 1},
    ),
    "what is left out": (
        images("a/1.png") | {"a/x.txt": "x", "a/y.txt": "x", "a/z.pdf": b"%PDF-1.4", "notes": ""},
        {"a/1.png": (T, "a", None)},
        {"files-left-out": 4},
    ),
    "hidden files and litter": (
        images("a/1.png", ".git/a/1.png", "a/.1.png", "a/._1.png", "__MACOSX/a/1.png")
        | {"a/Thumbs.db": b"\xd0\xcf", "a/desktop.ini": "", ".DS_Store": ""},
        {"a/1.png": (T, "a", None)},
        {},
    ),
    "linked class folder": (
        images("there/x/1.png", "set/b/1.png") | {"set/a": "-> ../there/x"},
        {"set/b/1.png": (T, "b", None), "set/a/1.png": (T, "a", None)},
        {},
    ),
    "linked splits": (
        images("there/a/1.png", "there/b/2.png") | {"set/train": "-> ../there", "set/test": "-> ../there"},
        {f"set/{s}/{n}": (s, n[0], None) for s in ("train", "test") for n in ("a/1.png", "b/2.png")},
        {},
    ),
    "linked files and masks": (
        images("there/1.png", "there/mask.png")
        | {"set/images/a/1.png": "-> ../../../there/1.png", "set/masks/a": "-> ../../x", "x/1.png": mask()},
        {"set/images/a/1.png": (T, "a", "set/masks/a/1.png")},
        {},
    ),
    "a loop": (
        images("set/a/1.png") | {"set/a/again": "-> ..", "set/self": "-> .", "set/a/itself": "-> itself"},
        {"set/a/1.png": (T, "a", None)},
        {"link-loops": 2, "broken-links": 1},
    ),
    "two loops": (
        images("set/a/1.png", "set/b/1.png") | {"set/a/to_b": "-> ../b/to_a", "set/b/to_a": "-> ../a/to_b"},
        {"set/a/1.png": (T, "a", None), "set/b/1.png": (T, "b", None)},
        {"broken-links": 2},
    ),
    "broken links": (
        images("a/1.png") | {"a/2.png": "-> /nowhere/2.png", "b": "-> /nowhere/b"},
        {"a/1.png": (T, "a", None)},
        {"broken-links": 2},
    ),
    "empty class folders": (
        images("train/a/1.png", "test/b/1.png") | {"train/b": None, "train/c": None, "masks/train/a": None},
        {"train/a/1.png": (T, "a", None), "test/b/1.png": ("test", "b", None)},
        {"empty-folders": 2},
    ),
    "splits in any spelling": (
        images("TRAIN/a/1.png", "Training/a/2.png", "VALID/a/3.png", "val/a/4.png", "Test/a/5.png"),
        {
            "TRAIN/a/1.png": (T, "a", None),
            "Training/a/2.png": (T, "a", None),
            "VALID/a/3.png": (V, "a", None),
            "val/a/4.png": (V, "a", None),
            "Test/a/5.png": ("Test", "a", None),
        },
        {},
    ),
    "names for a terminal": (
        images("[bold]/1.png", "[red]/\x1b[31m.png", "a\nb/\u202e1.png"),
        {"[bold]/1.png": (T, "[bold]", None), "[red]/\x1b[31m.png": (T, "[red]", None), "a\nb/\u202e1.png": (T, "a\nb", None)},
        {},
    ),
    "file names that are no UTF-8": (
        {"a/\udcff.png": png(1), "masks/a/\udcff.png": mask()},
        {"a/\udcff.png": (T, "a", "masks/a/\udcff.png")},
        {},
    ),
    "long names": (
        images(f"{'c' * 255}/{'n' * 251}.png"),
        {f"{'c' * 255}/{'n' * 251}.png": (T, "c" * 255, None)},
        {},
    ),
    "digits with underscores": (images("1_0/1.png", "10/1.png"), {"1_0/1.png": (T, "1_0", None), "10/1.png": (T, "10", None)}, {}),
    "letters in both cases": (images("a/1.png", "A/1.png"), {"a/1.png": (T, "a", None), "A/1.png": (T, "A", None)}, {}),
    "a class called train": (images("train/1.png", "bus/1.png"), {"train/1.png": (T, "train", None), "bus/1.png": (T, "bus", None)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_folders_are_read(tmp_path: Path, case: str) -> None:
    files, expected, told = READ[case]
    lay(tmp_path, files)
    root = tmp_path / "set" if (tmp_path / "set").is_dir() else tmp_path
    table = read_table(root)
    assert pairs(table, tmp_path) == expected
    assert codes(table) == told
    assert all("\n" not in repr(finding.line) for finding in table.findings)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "found no images"),
    "only masks": (images("masks/a/1.png"), "found no images"),
    "only text": ({"a/x.txt": "x"}, "found no images"),
    "images outside of classes": (images("a/1.png", "1.png"), r"depths 1 \(1.png\), 2 \(a/1.png\)"),
    "mixed depths": (images("train/a/1.png", "b/1.png"), r"depths 2 \(b/1.png\), 3 \(train/a/1.png\)"),
    "too deep": (images("a/b/c/d/1.png"), r"depths 5 \(a/b/c/d/1.png\)"),
    "splits without classes": (images("train/1.png", "Test/1.png"), "Test, train are splits, but hold images"),
    "two masks": (images("a/1.dcm", "masks/a/1.png", "masks/a/1.bmp"), r"a/1.dcm: two masks \(.*1.bmp, .*1.png\)"),
    "two masks in two folders": (images("a/1.png", "masks/a/1.png", "a/masks/1.png"), "a/1.png: two masks"),
    "two masks called so": (images("a/1.png", "masks/a/1_mask.png", "masks/a/1_mask.jpg"), "a/1.png: two masks"),
    "two images": (images("images/a/0.png", "images/a/0.jpg", "masks/a/0.bmp"), "0.bmp: the mask of two images"),
    "two images, one exact": (
        images("images/a/0.png", "images/a/0.jpg", "masks/a/0.png"),
        "masks/a/0.png: the mask of two images .*0.jpg, .*0.png",
    ),
    "p and p_mask": (
        images("images/a/p.png", "images/a/p_mask.png", "masks/a/p_mask.png"),
        "masks/a/p_mask.png: the mask of two images",
    ),
    "classes in two cases": (images("COVID/1.png", "covid/1.png"), "classes 'COVID' and 'covid' differ only in case"),
    "classes across splits": (images("train/COVID/1.png", "test/Covid/1.png"), "'COVID' and 'Covid' differ only"),
    "spaces in classes": (images("no finding/1.png", "no  finding/1.png"), "differ only in case, spaces"),
    "unseen characters": (images("covid/1.png", "covid\u200b/1.png"), "differ only in case, spaces, unseen"),
    "lookalike numbers": (images("1/1.png", "01/1.png"), "'01' and '1' differ only"),
    "splits in two cases": (images("train/a/1.png", "Test/a/1.png", "test/a/1.png"), "splits 'Test' and 'test' differ"),
    "class that is no UTF-8": ({"\udcff/1.png": png(1)}, "valid UTF-8; rename it"),
    "split that is no UTF-8": ({"tr\udcff/a/1.png": png(1)}, "valid UTF-8; rename it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    files, text = REFUSED[case]
    lay(tmp_path, files)
    with pytest.raises(DataError, match=text) as caught:
        read_table(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, images("a/1.png", "b/1.png"))
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(tree.os, "scandir", closed)
    with pytest.raises(DataError, match=r"the folder .*/b cannot be listed \(Permission denied\)"):
        read_table(tmp_path)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    lay(tmp_path, images("a/1.png"))
    os.mkfifo(tmp_path / "a" / "2.png")  # reading it would never end
    table = read_table(tmp_path)
    assert len(table.records) == 1 and codes(table) == {"broken-links": 1}


def test_folders_full_of_links_to_each_other_end(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(9)]
    lay(tmp_path, images(*(f"{name}/1.png" for name in names)))
    for name in names:
        lay(tmp_path / name, {f"to_{other}": f"-> ../{other}" for other in names if other != name})
    with pytest.raises(DataError, match="images at depths 2"):
        read_table(tmp_path)


def test_masks_elsewhere(tmp_path: Path) -> None:
    lay(tmp_path, images("set/a/1.png", "set/b/2.png", "set/segmentations/a/1_mask.png", "set/segmentations/b/2.png"))
    table = read_table(tmp_path / "set", masks=tmp_path / "set" / "segmentations")
    assert {found[2] for found in pairs(table, tmp_path / "set").values()} == {
        "segmentations/a/1_mask.png",
        "segmentations/b/2.png",
    }
    with pytest.raises(DataError, match="is the folder of the images"):
        read_table(tmp_path / "set", masks=tmp_path / "set" / "." / "a" / "..")
    # Images inside the folder of masks are no masks.
    lay(tmp_path, images("all/images/a/1.png", "all/a/1_mask.png"))
    table = read_table(tmp_path / "all" / "images", masks=tmp_path / "all")
    assert pairs(table, tmp_path / "all") == {"images/a/1.png": (T, "a", "a/1_mask.png")}


def test_order_does_not_depend_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, images(*(f"{name}/{number}.png" for name in "abc" for number in range(12))))
    before = read_table(tmp_path)
    scandir = os.scandir
    monkeypatch.setattr(tree.os, "scandir", lambda path: reversed(list(scandir(path))))
    assert read_table(tmp_path) == before


def test_an_empty_file_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    lay(tmp_path, images("a/1.png") | {"a/2.png": b""})
    table = read_table(tmp_path)
    assert [record.image for record in table.records] == [FileRef(tmp_path / "a" / f"{n}.png") for n in (1, 2)]
