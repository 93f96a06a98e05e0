"""Masks beside images that a camera's orientation turns, columns without a name, and folders that programs leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hostile import images, lay
from PIL import Image

from isnet.data import FileRef, ImageTable, MaskedImages, MaskError, Record, UnreadableFileError, read_image, read_table

EXIF = 0x0112


@pytest.mark.parametrize("resize", [False, True])
def test_a_mask_of_an_image_that_is_turned_names_the_orientation(tmp_path: Path, resize: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[EXIF] = 6
    image.save(tmp_path / "i.jpg", exif=exif)
    Image.fromarray((pixels > 99) * np.uint8(255)).save(tmp_path / "m.png")
    record = Record(FileRef(tmp_path / "i.jpg"), 0, FileRef(tmp_path / "m.png"))
    with pytest.raises(MaskError, match=r"m\.png: a mask of 20x30 .* for an image of 30x20 .*EXIF orientation"):
        MaskedImages(ImageTable((record,), ("a",)), 8, resize_masks=resize)[0]


def test_what_drives_and_file_managers_leave_behind_is_no_image(tmp_path: Path) -> None:
    left = ("a/@eaDir/1.png/SYNOFILE_THUMB_M.png", "lost+found/x.png", "$RECYCLE.BIN/x.png", "__MACOSX/a/1.png")
    table = read_table(lay(tmp_path, images("a/1.png", "b/2.png", *left)))
    assert table.classes == ("a", "b") and len(table.records) == 2 and table.findings == ()


def test_a_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path), "/"):
        with pytest.raises(UnreadableFileError, match="a folder in place of a file"):
            read_image(FileRef(Path(name)))


def test_the_index_of_pandas_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("Unnamed: 0,image,edema,mass\n0,a.png,1,1\n1,b.png,0,1\n")
    table = read_table(tmp_path / "set.csv")
    assert table.classes == ("edema", "mass") and table.unread == ("Unnamed: 0",)
