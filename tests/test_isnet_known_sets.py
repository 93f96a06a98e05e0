"""Layouts, tables and masks as well-known sets and programs write them: read as they are meant, or refused with the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import codes, encoded, images, lay, mask, pairs, png, shard
from picture_files import dicom
from PIL import Image
from typer.testing import CliRunner

from isnet.cli import app
from isnet.data import (
    ImageTable,
    MaskedImages,
    UnreadableFileError,
    examine,
    mask_reading,
    read_image,
    read_mask,
    read_table,
)
from isnet.data.files import FileRef
from isnet.data.names import DataError
from isnet.data.sets import ShardError

HEIGHTS, WIDTHS = np.mgrid[:64, :64]
DISC = (HEIGHTS - 32) ** 2 + (WIDTHS - 32) ** 2 < 200
RING = (HEIGHTS - 32) ** 2 + (WIDTHS - 32) ** 2 < 300


def layout(*names: str) -> dict[str, bytes]:
    """Images, masks where a name has mask or seg in it, and other files."""
    others = {name: b"text" for name in names if name.endswith((".csv", ".tar", ".txt"))}
    return {name: mask() if re.search("mask|seg", name.casefold()) else png(name) for name in names} | others


def each(*patterns: str) -> tuple[str, ...]:
    """For two classes of two images."""
    return tuple(pattern.format(c=c, i=i) for pattern in patterns for c in ("cat", "dog") for i in (1, 2))


# ---- folders


@pytest.mark.parametrize(
    "ending", ["_mask", "_MASK", "_masks", "-mask", ".mask", " mask", "_seg", "_Segmentation", "_segmentations", "_mask_1", "_mask1"]
)  # fmt: skip
def test_masks_beside_their_images_by_the_usual_endings(tmp_path: Path, ending: str) -> None:
    names = each("{c}/ISIC_{i}.jpg", "{c}/ISIC_{i}" + ending + ".png")
    table = read_table(lay(tmp_path, layout(*names)))
    assert {name: found[2] for name, found in pairs(table, tmp_path).items()} == dict(
        zip(names[:4], names[4:], strict=True)
    )
    assert codes(table) == {"masks-beside-images": 4}


@pytest.mark.parametrize("ending", ["_mask", "_Mask", "_segmentation", ".seg", "-mask"])
def test_masks_in_a_folder_by_the_usual_endings(tmp_path: Path, ending: str) -> None:
    table = read_table(lay(tmp_path, layout(*each("{c}/{i}.jpg", "masks/{c}/{i}" + ending + ".png"))))
    assert all(record.mask is not None for record in table.records) and codes(table) == {}


def test_words_within_a_name_are_no_ending(tmp_path: Path) -> None:
    names = each("{c}/{i}.png", "{c}/{i}unmask.png", "{c}/bathmask_{i}_x.png", "{c}/alone{i}_mask.png")
    table = read_table(lay(tmp_path, images(*names)))
    assert len(table.records) == len(names) and not any(record.mask for record in table.records)


MASKS = "holds masks, call it masks, or name a folder of masks (--masks)"
FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "BUSI, several lesions": ((*each("{c}/{i}.png", "{c}/{i}_mask.png"), "cat/1_mask_1.png"), "two masks"),
    "CUB": (each("images/{c}/{i}.jpg", "segmentations/{c}/{i}.png"), f"/segmentations {MASKS}"),
    "COVID-QU-Ex": (each("Train/{c}/images/{i}.png", "Train/{c}/lung masks/{i}.png"), f"/Train/cat/lung masks {MASKS}"),
    "singular": (each("images/{c}/{i}.png", "mask/{c}/{i}.png"), f"/mask {MASKS}"),
    "ground truth": (each("images/{c}/{i}.png", "GroundTruth/{c}/{i}.png"), f"/GroundTruth {MASKS}"),
    "Montgomery": (("CXR_png/1_0.png", "ManualMask/left/1_0.png", "ManualMask/right/1_0.png"), f"/ManualMask {MASKS}"),
    "unpacked twice": (each("lungs/lungs/{c}/{i}.png"), "name the folder of the splits or classes, {root}/lungs/lungs"),
    "Hugging Face": (each("data/train/{c}/{i}.png", "data/test/{c}/{i}.png"), "splits or classes, {root}/data"),
    "YOLO": (("images/train/1.jpg", "images/val/1.jpg"), "train, val: named as splits, but with images instead of class folders"),
    "tables": (("a/x.csv", "b/y.csv", "b/z.txt"), "found no images (2 .csv, 1 .txt)"),
    "shards": (("train/0.tar", "val/0.tar"), "name the folder that the shards lie in, {root}/train"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_refused_with_the_remedy(tmp_path: Path, case: str) -> None:
    names, text = FOLDERS[case]
    lay(tmp_path, layout(*names))
    with pytest.raises(DataError) as caught:
        read_table(tmp_path)
    assert text.format(root=tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# ---- tables

HEAD = "image,label"
TABLES: dict[str, tuple[str, str]] = {
    "fastai": ("image,label,is_valid\na.png,x,False\nb.png,y,True\n", "column 'is_valid' (False, True) seems to tell the splits"),
    "subset": ("image,label,subset\na.png,x,train\nb.png,y,test\n", "column 'subset' (train, test) seems to tell the splits"),
    "dataset": ("image,label,Dataset\na.png,x,TRAINING\nb.png,y,Val\nc.png,y,\n", "column 'Dataset' (TRAINING, Val) seems"),
    "uncertain": ("image,edema,mass\na.png,1,0\nb.png,-1.0,1\n", "'edema' holds other values than 0 and 1"),
    "write.table of R": ('"image" "label"\n"1" "a.png" "x"\n', "no column 'image'; its columns are 'image \"label\"'"),
    "a comment": (f"# made by me\n{HEAD}\na.png,x\n", "no column 'image'; its columns are '# made by me'"),
    "a web page": ("<!DOCTYPE html><html>\n<p>404\n", "no column 'image'; its columns are '<!DOCTYPE html><html>'"),
    "no header": ("a.png,x\nb.png,y\n", "the first row must hold the names of the columns"),
    "addresses": (f"{HEAD}\na.png,x\nhttps://example.org/b.png,y\n", "row 3: 'https://example.org/b.png' is an address"),
    "buckets": (f"{HEAD}\ns3://bucket/b.png,y\n", "row 2: 's3://bucket/b.png' is an address; download the file"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_refused_with_the_remedy(tmp_path: Path, case: str) -> None:
    content, text = TABLES[case]
    (tmp_path / "set.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "set.csv")
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_tables_of_chexpert_name_the_cell_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,Sex,Edema,Mass\na.jpg,Male,1.0,0.0\nb.jpg,Female,-1.0,\n")
    with pytest.raises(DataError, match=r"row 3, column Edema: .* got '-1.0'; write one of them, or leave the row out"):
        read_table(tmp_path / "set.csv", labels=["Edema", "Mass"])


def test_usual_names_of_the_validation_split(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(f"{HEAD},split\na.png,x,train\nb.png,y,validate\nc.png,y,Dev\nd.png,y,devices\n")
    assert read_table(tmp_path / "set.csv").splits == ("train", "validation", "devices")


def test_columns_that_do_not_tell_splits_stay_unread(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(
        f"{HEAD},fold,part,kind\na.png,x,0,train\nb.png,y,1,train\nc.png,y,1,dog\n".replace("part,kind\n", "kind\n")
    )
    assert read_table(tmp_path / "set.csv").unread == ("fold", "kind")


# ---- shards


def samples(count: int = 2, **more: Any) -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(count)
        for member in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps({"label": i % 2, **more}).encode()))
    ]


def test_names_of_shards_tell_splits_where_samples_do_not(tmp_path: Path) -> None:
    for name in ("birds-train-0000.tar", "birds_val.tar", "TEST.tar", "trainers-1.tar", "train-test.tar"):
        shard(tmp_path / name, samples())
    shard(tmp_path / "test-2.tar", samples(split="Hospital B"))
    table = read_table(tmp_path)
    told = {record.image.path.name: record.split for record in table.records}
    assert told == {
        "birds-train-0000.tar": "train", "birds_val.tar": "validation", "TEST.tar": "test", "trainers-1.tar": "train",
        "train-test.tar": "train", "test-2.tar": "Hospital B",
    }  # fmt: skip
    assert codes(table)["splits-of-shards"] == 4
    assert "splits-of-shards" not in codes(read_table(shard(tmp_path / "set.tar", samples())))


def test_a_key_with_points_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"sample scan has no image among 1\.cls, 1\.png; a key ends at the first point"
    ):
        read_table(shard(tmp_path / "s.tar", [("scan.1.png", png()), ("scan.1.cls", b"0")]))


# ---- files

FILES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "an empty file"),
    "empty.dcm": (b"", "an empty file"),
    "empty.nii.gz": (b"", "an empty file"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", r"a pointer of Git LFS .*git lfs pull"),
    "page.jpg": (b"<!DOCTYPE html><html>", r"no whole file of the kinds PNG, .* begins with b'<!DOCTYPE ht'\); save it as"),
    "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "begins with .*ftypheic"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_image_is_named(tmp_path: Path, name: str) -> None:
    content, text = FILES[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(UnreadableFileError, match=f"{name}: .*{text}") as caught:
            read(FileRef(tmp_path / name))
        assert "0x" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_another_suffix_is_pointed_to(tmp_path: Path) -> None:
    lay(tmp_path, {"ISIC_1.jpg": png(), "2.5.dcm.PNG": png()})
    for name, found in (
        ("ISIC_1", "ISIC_1.jpg"),
        ("ISIC_1.png", "ISIC_1.jpg"),
        ("2.5.dcm", "2.5.dcm.PNG"),
        ("3.png", ""),
    ):
        with pytest.raises(UnreadableFileError) as caught:
            read_image(FileRef(tmp_path / name))
        assert str(caught.value).endswith(
            f"no such file, but there is {found}: write its full name" if found else "no such file"
        )


def test_empty_elements_of_a_dicom_file_are_as_good_as_none(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4095, (16, 16)).astype(np.uint16)
    dicom(tmp_path / "plain.dcm", pixels)
    dicom(
        tmp_path / "empty.dcm",
        pixels,
        RescaleSlope="",
        RescaleIntercept="",
        WindowCenter="",
        WindowWidth="",
        VOILUTFunction="",
    )
    assert read_image(FileRef(tmp_path / "empty.dcm")).equal(read_image(FileRef(tmp_path / "plain.dcm")))
    dicom(tmp_path / "zero.dcm", pixels, WindowCenter=100, WindowWidth=0)
    with pytest.raises(
        UnreadableFileError, match=r"zero.dcm: its window cannot be applied \(.*\); mend it or take it out"
    ):
        read_image(FileRef(tmp_path / "zero.dcm"))


# ---- masks

SAID = "--foreground-values"
COLOURS = np.array([(0, 0, 0), (192, 128, 128), (224, 224, 192)], np.uint8)[
    DISC * 1 + RING * 1 - (DISC & RING) * 1 + (RING & ~DISC) * 1
]
REFUSED: dict[str, tuple[np.ndarray, int | None, str]] = {
    "Oxford-IIIT Pets": (np.where(DISC, 1, np.where(RING, 3, 2)), None, f"no pixel is 0, so that any of 1-3 may be the background.*{SAID}"),
    "ilastik": (np.where(DISC, 2, 1), None, f"any of 1, 2 may be the background.*{SAID}"),
    "ADE20K": (np.where(DISC, 13, np.where(WIDTHS < 9, 3, 1)), None, "any of 1, 3, 13 may"),
    "VOC in colours": (COLOURS, 255, f"none is the number 255.*{SAID}"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_masks_with_any_background_are_refused(tmp_path: Path, case: str) -> None:
    pixels, void, text = REFUSED[case]
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UnreadableFileError, match=f"m.png: .*{text}"):
        read_mask(FileRef(tmp_path / "m.png"), void=void)


@pytest.mark.parametrize(
    ("pixels", "how", "expected"),
    [
        (REFUSED["Oxford-IIIT Pets"][0], {"foreground_values": ["1"]}, DISC),
        (REFUSED["ilastik"][0], {"foreground_values": [2]}, DISC),
        (COLOURS, {"foreground_values": ["#c08080"], "void": 255}, DISC),
        (np.where(DISC, 2, np.where(RING, 1, 255)), {"void": 255}, RING),
        (np.where(DISC, 255, np.where(RING, 51, 0)), {}, RING),  # votes of the CUB birds
    ],
)
def test_masks_of_which_something_is_said(tmp_path: Path, pixels: np.ndarray, how: Any, expected: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(FileRef(tmp_path / "m.png"), **how)[0].numpy(), expected)


def test_many_labels_are_told_in_spans(tmp_path: Path) -> None:
    cells = np.kron(np.arange(64).reshape(8, 8), np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(cells).save(tmp_path / "m.png")
    assert str(mask_reading(FileRef(tmp_path / "m.png"))) == "labels: 1-31 of 0-31, ..."


# ---- isnet data check


def checked(path: Path, *options: str) -> tuple[dict[str, Any], int]:
    done = CliRunner().invoke(app, ["data", "check", str(path), "--json", "-", "--size", "16", *options])
    return json.loads(done.stdout), done.exit_code


def grey(seed: int, top: float = 255, dtype: Any = np.uint8) -> bytes:
    return encoded((np.random.default_rng(seed).random((16, 16)) * top).astype(dtype))


def test_images_of_twelve_bits_and_masks_among_images_are_warned_of(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": grey(1000 * (c == "b") + i) for c in "ab" for i in range(12)}
    files |= {f"masks/{c}/{i}.png": mask(16) for c in "ab" for i in range(12)}
    files |= {"a/1.png": grey(1, 4095, np.uint16), "b/2.png": grey(2, 1.99), "b/3.png": mask(16)}
    told, code = checked(lay(tmp_path / "set", files))
    found = {finding["code"]: finding for finding in told["findings"]}
    assert code == 0 and {name for name in found if found[name]["severity"] == "warning"} >= {
        "narrow-range",
        "images-like-masks",
    }
    assert [Path(text.split(" (")[0]).name for text in found["narrow-range"]["examples"]] == ["1.png", "2.png"]
    assert [Path(text).name for text in found["images-like-masks"]["examples"]] == ["2.png", "3.png"]
    row = told["statistics"][0]
    assert (
        row["lowest"]["min"] == 0
        and row["highest"]["min"] == pytest.approx(4095 / 65535, abs=1e-3)
        and row["highest"]["max"] > 0.9
    )


def test_a_set_of_two_brightnesses_is_a_note(tmp_path: Path) -> None:
    files = {
        f"{c}/{i}.png": encoded((np.random.default_rng([ord(c), i]).random((16, 16)) > 0.5) * np.uint8(255))
        for c in "ab"
        for i in range(10)
    }
    told, _ = checked(lay(tmp_path, files | {f"masks/{name}": mask(16) for name in files}))
    assert {finding["code"]: finding["severity"] for finding in told["findings"]}["images-like-masks"] == "note"


def test_without_masks_the_remedy_tells_where_they_belong(tmp_path: Path) -> None:
    told, code = checked(lay(tmp_path, {f"{c}/{i}.png": grey(1000 * (c == "b") + i) for c in "ab" for i in range(10)}))
    (finding,) = (finding for finding in told["findings"] if finding["code"] == "unusable-masks")
    assert code == 1 and "folder masks" in finding["remedy"] and "--segmenter" in finding["remedy"]


def test_labels_of_all_masks_are_told_together(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": grey(1000 * (c == "b") + i) for c in "ab" for i in range(10)}
    for number, name in enumerate(list(files)):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[2:6, 2:6], pixels[8:12, 8:12] = 1 + number, 2 + number
        files[f"masks/{name}"] = encoded(pixels)
    told, _ = checked(lay(tmp_path, files))
    (finding,) = (finding for finding in told["findings"] if finding["code"] == "mask-values")
    assert finding["examples"] == ["labels: 1-21 of 0-21"]


def test_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isnet.data import pixels

    read: list[str] = []
    decode = pixels._picture
    monkeypatch.setattr(pixels, "_picture", lambda file, **how: (read.append(str(file)), decode(file, **how))[1])
    table: ImageTable = read_table(lay(tmp_path, images(*each("{c}/{i}.png", "masks/{c}/{i}.png"))))
    facts = examine(MaskedImages(table, 8))
    assert len(read) == len(set(read)) == 8 and all(
        seen.mask is not None and seen.mask.reading is not None for seen in facts
    )
