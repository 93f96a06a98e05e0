"""The user's own images: folders, manifests, shards, readers, masks and their policies, audit and the validation split."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isnet.data import (
    DataError,
    FileRef,
    ImageTable,
    MaskedImages,
    MaskError,
    Record,
    ShardError,
    UnreadableFileError,
    apply_policy,
    audit,
    check,
    describe,
    read_image,
    read_mask,
    read_table,
    with_validation,
)

SIDE = 12


def picture(index: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (side, side), dtype=np.uint8)


def square(side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[3:9, 3:9] = 255
    return mask


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def image_folder(root: Path) -> Path:
    """Two classes, three splits, masks beside the images."""
    index = 0
    for split, count in (("train", 4), ("val", 2), ("other hospital", 2)):
        for name in ("covid", "normal"):
            for number in range(count):
                save(root / "images" / split / name / f"{number}.png", picture(index))
                save(root / "masks" / split / name / f"{number}_mask.png", square())
                index += 1
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "set")


def test_folder_with_splits_and_masks(folder: Path) -> None:
    table = read_table(folder)
    assert table.classes == ("covid", "normal") and not table.multi_label
    assert table.splits == ("train", "validation", "other hospital")
    assert all(record.mask is not None for record in table.records)
    assert describe(table)[0] == ("train", "train", 8, {"covid": 4, "normal": 4})
    images = MaskedImages(table.part("other hospital"), 10)
    image, label, mask = images[3]
    assert image.shape == (1, 10, 10) and image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert int(label) == 1 and images.labels.tolist() == [0, 0, 1, 1]
    assert set(mask.unique().tolist()) == {0.0, 1.0} and mask[0, 5, 5] == 1 and mask[0, 0, 0] == 0


def test_flat_folder_and_separate_masks(tmp_path: Path) -> None:
    save(tmp_path / "a" / "yes" / "1.jpg", picture(1))
    save(tmp_path / "a" / "no" / "1.jpg", picture(2))
    save(tmp_path / "b" / "yes" / "1.png", square())
    table = read_table(tmp_path / "a", masks=tmp_path / "b")
    assert [(record.label, record.split, record.mask is not None) for record in table.records] == [
        (0, "train", False),
        (1, "train", True),
    ]
    with pytest.raises(DataError, match=r"masks: .* is no folder"):
        read_table(tmp_path / "a", masks=tmp_path / "c")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_manifest(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "x" / "1.png", picture(1))
    save(tmp_path / "x" / "2.png", picture(2))
    save(tmp_path / "m" / "1.png", square())
    rows = [
        {"image": "x/1.png", "mask": "m/1.png", "label": "10", "source": "A", "split": "training", "group": "p1"},
        {"image": "x/2.png", "mask": "", "label": "9", "source": "B", "split": "test", "group": "p2"},
    ]
    path = tmp_path / f"set{suffix}"
    write(path, rows)
    table = read_table(path)
    assert table.classes == ("9", "10")  # numbers in their order
    first, second = table.records
    assert (first.label, first.source, first.split, first.group) == (1, "A", "train", "p1")
    assert second.mask is None and second.split == "test"
    assert MaskedImages(table.part("train"), SIDE)[0][0].equal(read_image(FileRef(tmp_path / "x" / "1.png")))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def test_multi_label_manifest(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"{number}.png", picture(number))
    rows = [
        {"image": "1.png", "edema": "1", "effusion": "0", "age": "61"},
        {"image": "2.png", "edema": "0.0", "effusion": "1", "age": "7"},
    ]
    write(tmp_path / "set.csv", rows)
    table = read_table(tmp_path / "set.csv", labels=["edema", "effusion"])
    assert table.multi_label and table.classes == ("edema", "effusion")
    assert MaskedImages(table, SIDE, mask_policy="full")[1][1].tolist() == [0.0, 1.0]
    with pytest.raises(DataError, match=r"no column 'label'; .*'age' holds other values than 0 and 1"):
        read_table(tmp_path / "set.csv")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"imag": "1.png", "label": "a"}], r"no column 'image'.*imag\?"),
        ([{"image": "1.png", "label": ""}], "row 2: no label"),
        ([{"image": "", "label": "a"}], "row 2: no image"),
    ],
)
def test_faulty_manifests(tmp_path: Path, rows: list[dict[str, str]], text: str) -> None:
    write(tmp_path / "set.csv", rows)
    with pytest.raises(DataError, match=text):
        read_table(tmp_path / "set.csv")


@pytest.mark.parametrize(
    ("column", "meant"),
    [("spilt", "split"), ("Splits", "split"), ("mask_path", "mask"), ("msak", "mask"), ("gruop", "group")],
)
def test_mistyped_columns_are_refused(tmp_path: Path, column: str, meant: str) -> None:
    write(tmp_path / "set.csv", [{"image": "1.png", "label": "a", column: "test"}])
    with pytest.raises(DataError, match=f"column '{column}' is not read: if it is meant as '{meant}'"):
        read_table(tmp_path / "set.csv")
    write(tmp_path / "set.csv", [{"image": "1.png", "label": "a", column: "x", meant: "test"}])
    assert read_table(tmp_path / "set.csv").unread == (column,)


def test_other_columns_may_be_there(tmp_path: Path) -> None:
    others = ("age", "site", "slice", "age_group", "mass", "image_id", "labels")
    write(tmp_path / "set.csv", [{"image": "1.png", "label": "1", **dict.fromkeys(others, "1")}])
    assert read_table(tmp_path / "set.csv").unread == others
    write(tmp_path / "set.csv", [{"image": "1.png", "edema": "1", "label_2": "1"}])
    assert read_table(tmp_path / "set.csv", labels=["edema"]).unread == ("label_2",)


def test_arguments_for_other_kinds_of_data_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "yes" / "1.png", picture(1))
    write(tmp_path / "set.csv", [{"image": "1.png", "label": "a"}])
    shard(tmp_path / "0.tar", {"1": {"png": encoded(picture(1)), "cls": b"1"}})
    for name, text in (("set.csv", "a manifest names them in its column mask"), ("0.tar", "shards hold them as KEY")):
        with pytest.raises(DataError, match=f"masks: a folder of masks is for an image folder, but .*{name} .*{text}"):
            read_table(tmp_path / name, masks="/nowhere")
    for name in ("a", "0.tar"):
        with pytest.raises(DataError, match=f"label: columns are those of a manifest, but .*{name} is none"):
            read_table(tmp_path / name, labels=["yes"])


def test_hidden_files_are_left_out(folder: Path) -> None:
    expected = read_table(folder)
    for kind in ("images", "masks"):
        save(folder / kind / "train" / ".ipynb_checkpoints" / "1.png", picture(1))
        (folder / kind / "train" / "covid" / "._1.png").write_bytes(b"macOS")
    assert read_table(folder) == expected
    whole = {"png": encoded(picture(1)), "cls": b"7"}
    shard(folder / "0.tar", {"a/01": whole, "a/._01": {"png": b"macOS"}})
    (folder / "._0.tar").write_bytes(b"macOS")
    assert len(read_table(folder).records) == 1


def test_a_review_of_classes_and_groups() -> None:
    def table(*rows: tuple[Any, str, str], classes: tuple[str, ...] = ("a", "b"), several: bool = False) -> ImageTable:
        records = (Record(FileRef(Path("x.png")), label, split=split, group=group) for label, split, group in rows)
        return ImageTable(tuple(records), classes, several)

    fine = (0, "train", "p1"), (1, "train", "p2"), (1, "test", "p3")

    def found(severity: str, table: ImageTable) -> list[str]:
        return [finding.line for finding in check(table) if finding.severity == severity]

    assert found("error", table(*fine)) == []
    assert "1 group in both train and test: p2. Scores there may be too high" in found(
        "warning", table(*fine, (0, "test", "p2"))
    )
    assert found("error", table(*fine, (2, "test", ""), classes=("a", "b", "c"))) == [
        "no training image is of the class c"
    ]
    assert found("error", table((0, "test", "")))[0].startswith("no training images; the splits are test. ")
    assert found("error", table((0, "train", ""), classes=("a",))) == ["a single class: a"]
    alike = table(((0, 1), "train", ""), ((0, 1), "train", ""), several=True)
    assert found("error", alike) == ["no training image has the label a", "every training image has the label b"]


def test_faulty_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="expected a folder"):
        read_table(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no images"):
        read_table(tmp_path)
    save(tmp_path / "deep" / "a" / "b" / "c" / "1.png", picture(1))
    with pytest.raises(DataError, match="depths"):
        read_table(tmp_path / "deep")


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_shards(tmp_path: Path) -> None:
    whole = {"png": encoded(picture(1)), "mask.png": encoded(square())}
    shard(tmp_path / "0.tar", {"a/01": {**whole, "cls": b"7\n"}, "a/02": {**whole, "cls": b"11"}})
    extra = json.dumps({"label": 7, "source": "B", "split": "test", "group": "p"}).encode()
    shard(tmp_path / "1.tar", {"03": {"png": encoded(picture(3)), "json": extra}})
    table = read_table(tmp_path)
    assert table.classes == ("7", "11")
    assert [record.label for record in table.records] == [0, 1, 0]
    assert table.records[2].mask is None and table.records[2].source == "B" and table.records[2].split == "test"
    expected = torch.from_numpy(picture(3)).float()[None] / 255
    assert MaskedImages(table, SIDE, mask_policy="full")[2][0].equal(expected)
    assert read_mask(table.records[1].mask)[0].equal(torch.from_numpy(square() > 0).float())
    with pytest.raises(ShardError, match="sample 9 has no image"):
        read_table(shard(tmp_path / "bad.tar", {"9": {"cls": b"1"}}))
    with pytest.raises(ShardError, match=r"neither \.cls nor a label"):
        read_table(shard(tmp_path / "bad.tar", {"9": {"png": b"1"}}))
    with pytest.raises(ShardError, match=r"sample 9: \.json: expected an object .*, got list"):
        read_table(shard(tmp_path / "bad.tar", {"9": {"png": b"1", "cls": b"1", "json": b"[1]"}}))
    (tmp_path / "bad.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ShardError, match="no uncompressed tar"):
        read_table(tmp_path / "bad.tar")


# ---- files


def test_depths_colours_and_16_bits(tmp_path: Path) -> None:
    deep = save(tmp_path / "deep.png", np.array([[0, 65535], [32768, 100]], dtype=np.uint16))
    torch.testing.assert_close(read_image(FileRef(deep))[0], torch.tensor([[0, 1], [32768 / 65535, 100 / 65535]]))
    colour = np.zeros((2, 2, 3), dtype=np.uint8)
    colour[..., 1] = 255
    path = save(tmp_path / "green.png", colour)
    assert read_image(FileRef(path), 3)[:, 0, 0].tolist() == [0, 1, 0]
    assert read_image(FileRef(path), 1)[0, 0, 0] == pytest.approx(0.587)
    grey = save(tmp_path / "grey.png", np.full((2, 2), 51, dtype=np.uint8))
    assert read_image(FileRef(grey), 3).flatten().tolist() == pytest.approx([0.2] * 12)
    assert read_mask(FileRef(save(tmp_path / "ones.png", np.eye(2, dtype=np.uint8))))[0].equal(torch.eye(2))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    mask = np.zeros((8, 16), np.uint8)
    mask[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.jpg", "x.png"):
        Image.fromarray(mask).save(tmp_path / name, exif=exif)
        expected = torch.from_numpy(mask > 0)[None]
        expected = {1: expected, 3: expected.flip(1, 2), 6: expected.rot90(-1, (1, 2))}[orientation]
        assert (read_image(FileRef(tmp_path / name)) > 0.5).equal(expected)
        assert (read_mask(FileRef(tmp_path / name)) > 0).equal(expected)


def test_dicom(tmp_path: Path) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 100
    for interpretation in ("MONOCHROME2", "MONOCHROME1"):
        dataset = pydicom.Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 4, 1
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PhotometricInterpretation = interpretation
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
        expected = torch.arange(16.0).view(1, 4, 4) / 15
        expected = expected if interpretation == "MONOCHROME2" else 1 - expected
        torch.testing.assert_close(read_image(FileRef(tmp_path / "x.dcm")), expected)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, suffix: str) -> None:
    import nibabel

    pixels = np.arange(6, dtype=np.float32).reshape(3, 2)  # x, y
    nibabel.save(nibabel.Nifti1Image(pixels[..., None], np.eye(4)), tmp_path / f"x{suffix}")
    torch.testing.assert_close(read_image(FileRef(tmp_path / f"x{suffix}"))[0], torch.from_numpy(pixels.T.copy()) / 5)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 2, 4), np.float32), np.eye(4)), tmp_path / f"v{suffix}")
    with pytest.raises(UnreadableFileError, match=r"v.nii.*two-dimensional"):
        read_image(FileRef(tmp_path / f"v{suffix}"))


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    for name in ("x.png", "absent.png"):
        with pytest.raises(UnreadableFileError, match=name):
            read_image(FileRef(tmp_path / name))


# ---- masks


def one_image(tmp_path: Path, mask: np.ndarray | bytes | None) -> Path:
    root = tmp_path / "set"
    save(root / "images" / "a" / "1.png", picture(1))
    save(root / "images" / "b" / "2.png", picture(2))
    save(root / "masks" / "b" / "2.png", square())
    if isinstance(mask, bytes):
        (root / "masks" / "a").mkdir()
        (root / "masks" / "a" / "1.png").write_bytes(mask)
    elif mask is not None:
        save(root / "masks" / "a" / "1.png", mask)
    return root


FAULTS = {
    "missing": (None, "no mask"),
    "unreadable": (b"broken", "cannot be read"),
    "mismatched": (square(SIDE + 1), "a mask of 13x13 pixels for an image of 12x12 pixels"),
    "empty": (np.zeros((SIDE, SIDE), np.uint8), "no foreground"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_masks(tmp_path: Path, fault: str) -> None:
    mask, text = FAULTS[fault]
    table = read_table(one_image(tmp_path, mask))
    images = MaskedImages(table, SIDE)
    with pytest.raises(MaskError, match=f"1.png.*{text}"):
        images[0]
    problems = audit(images)
    assert [(p.row, p.trouble) for p in problems] == [(0, "mask")] and text in problems[0].text
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        apply_policy(table, problems, "error")
    kept = apply_policy(table, problems, "skip")
    assert [record.label for record in kept.records] == [1] and kept.classes == ("a", "b")
    full = apply_policy(table, problems, "full")
    assert [record.bad_mask for record in full.records] == [True, False]
    for needing, filled in ((None, 1), (("test",), 0)):
        images = MaskedImages(full, SIDE, mask_policy="full", need_masks=needing)
        assert images.masked == [1] and images[0][2].equal(torch.full((1, SIDE, SIDE), float(filled)))
    assert MaskedImages(table, SIDE, mask_policy="full")[0][2].equal(torch.ones(1, SIDE, SIDE))


def test_segmenter_makes_missing_masks(tmp_path: Path) -> None:
    table = read_table(one_image(tmp_path, None))

    def bright(image: Tensor) -> Tensor:
        return (image > 0.5).float()

    image, _, mask = MaskedImages(table, SIDE, segmenter=bright)[0]
    assert mask.equal((image > 0.5).float())
    assert MaskedImages(table, SIDE, segmenter=bright)[1][2].equal(torch.from_numpy(square() > 0).float()[None])
    with pytest.raises(MaskError, match=r"segmenter gave a mask of shape \[1, 2, 2\]"):
        MaskedImages(table, SIDE, segmenter=lambda image: image[:, :2, :2])[0]

    def threshold(image: Tensor, level: float) -> Tensor:
        return image > level

    for policy in ("error", "skip", "full"):
        images = MaskedImages(table, SIDE, segmenter=threshold, mask_policy=policy)
        with pytest.raises(DataError, match=r"1\.png: the segmenter .*threshold failed \(TypeError: .*'level'"):
            audit(images)


def test_audit_finds_bad_images(tmp_path: Path) -> None:
    root = one_image(tmp_path, square())
    save(root / "images" / "a" / "1.png", np.full((SIDE, SIDE), 9, np.uint8))
    problems = audit(MaskedImages(read_table(root), SIDE))
    assert len(problems) == 1 and problems[0].trouble == "image" and "same value" in problems[0].text
    with pytest.raises(DataError, match="same value"):
        apply_policy(read_table(root), problems, "full")


@pytest.mark.parametrize(
    ("values", "foreground"),
    [
        ([0, 1, 2], [0, 1, 1]),  # labels of two lungs
        ([1, 1, 1], [1, 1, 1]),
        ([0, 255, 255], [0, 1, 1]),
        ([3, 120, 250], [0, 0, 1]),  # JPEG's noise and a smooth edge
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".nii"])
def test_masks_may_hold_labels(tmp_path: Path, values: list[int], foreground: list[int], suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    if suffix == ".nii":
        import nibabel

        nibabel.save(nibabel.Nifti1Image(np.array([values] * 2, np.float32).T, np.eye(4)), path)
    else:
        save(path, np.array([values] * 2, np.uint8))
    assert read_mask(FileRef(path)).tolist() == [[foreground] * 2]


# ---- validation


def test_validation_share_keeps_groups_together(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": str(i % 2), "group": f"p{i // 4}"} for i in range(80)]
    write(tmp_path / "set.csv", rows)
    table = with_validation(read_table(tmp_path / "set.csv"), 0.25, seed=3)
    chosen = table.part("validation").records
    assert 14 <= len(chosen) <= 26
    assert not {r.group for r in chosen} & {r.group for r in table.part("train").records}
    assert with_validation(read_table(tmp_path / "set.csv"), 0.25, seed=3) == table
    with pytest.raises(DataError, match="validation: expected a share"):
        with_validation(table, 1.0)


def table_of(labels: list[int | tuple[int, ...]], groups: list[str] | None = None) -> ImageTable:
    names = groups or [""] * len(labels)
    records = (
        Record(FileRef(Path(f"{i}.png")), label, group=group)
        for i, (label, group) in enumerate(zip(labels, names, strict=True))
    )
    several = isinstance(labels[0], tuple)
    classes = range(len(labels[0]) if isinstance(labels[0], tuple) else 2)
    return ImageTable(tuple(records), tuple(map(str, classes)), several)


def validation_rows(table: ImageTable, share: float = 0.15, seed: int = 0) -> list[int]:
    return [i for i, r in enumerate(with_validation(table, share, seed).records) if r.split == "validation"]


def test_validation_leaves_each_class_its_last_group() -> None:
    groups = [f"p{i // 5}" for i in range(50)] + ["hospital B"] * 20
    chosen = validation_rows(table_of([0] * 50 + [1] * 20, groups))
    assert 5 <= len(chosen) <= 10 and max(chosen) < 50
    several = [(1, 0)] * 30 + [(0, 1)]  # one image alone has the second label, and lacks the first
    assert 30 not in validation_rows(table_of(several), 0.9)


def test_rare_combinations_of_labels_give_validation_images_together() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (1000, 12))
    assert len(validation_rows(table_of([tuple(map(int, row)) for row in bits]))) == 150


def test_ordinary_validation_splits_are_those_of_old() -> None:
    """A run that is taken up again must not meet its validation images in training."""
    labels = [i % 2 for i in range(60)]
    assert validation_rows(table_of(labels), seed=4) == [7, 15, 20, 24, 35, 38, 42, 46, 49, 55]
    grouped = table_of(labels, [f"p{i // 3}" for i in range(60)])
    assert validation_rows(grouped, seed=4) == [0, 1, 2, 9, 10, 11, 24, 25, 26, 33, 34, 35]


def test_split_names_in_any_case(tmp_path: Path) -> None:
    for split in ("Train", "VALIDATION", "Elsewhere"):
        save(tmp_path / split / "a" / "1.png", picture(1))
    assert read_table(tmp_path).splits == ("train", "validation", "Elsewhere")
