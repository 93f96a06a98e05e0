"""Manifests as spreadsheets and programs write them: the right table, or one line that names file and row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hostile import codes

from isnet.data import DataError, ImageTable, read_table

A, B = ("a.png", "x"), ("b.png", "y")  # what most tables say: (image, label)
LONG = "n" * 140_000


def told(table: ImageTable, root: Path) -> list[tuple[Any, ...]]:
    """(image, classes or bits), and further columns where they are not empty."""
    rows = []
    for record in table.records:
        label = table.classes[record.label] if isinstance(record.label, int) else record.label
        more = [os.path.relpath(record.mask.path, root)] if record.mask else []
        more += [record.source] * bool(record.source) + [record.split] * (record.split != "train")
        rows.append((os.path.relpath(record.image.path, root), label, *more, *[record.group] * bool(record.group)))
    return rows


# File -> its bytes, and what it says.
READ: dict[str, tuple[str, bytes | str, list[tuple[Any, ...]]]] = {
    "commas": ("s.csv", "image,label\na.png,x\nb.png,y\n", [A, B]),
    "semicolons": ("s.csv", "image;label\na.png;x\nb.png;y\n", [A, B]),
    "tabs": ("s.csv", "image\tlabel\na.png\tx\nb.png\ty\n", [A, B]),
    "bars": ("s.csv", "image|label\na.png|x\nb.png|y\n", [A, B]),
    "commas in a TSV": ("s.tsv", "image,label\na.png,x\nb.png,y\n", [A, B]),
    "semicolons around commas": ("s.csv", "image;label;note\na.png;x;1,2,3\nb.png;y;4\n", [A, B]),
    "no last newline": ("s.csv", "image,label\na.png,x\nb.png,y", [A, B]),
    "Windows": ("s.csv", "image,label\r\na.png,x\r\nb.png,y\r\n", [A, B]),
    "old Macintosh": ("s.csv", "image,label\ra.png,x\rb.png,y\r", [A, B]),
    "UTF-8 mark": ("s.csv", "\ufeffimage,label\na.png,x\nb.png,y\n", [A, B]),
    "UTF-8 mark before a quote": ("s.csv", '\ufeff"image","label"\n"a.png","x"\n"b.png","y"\n', [A, B]),
    "UTF-16": ("s.csv", "image,label\na.png,x\nb.png,y\n".encode("utf-16"), [A, B]),
    "UTF-16 of Excel": ("s.csv", b"\xff\xfe" + "image\tlabel\r\na.png\tä\r\n".encode("utf-16-le"), [("a.png", "ä")]),
    "UTF-16, big end first": ("s.csv", b"\xfe\xff" + "image,label\na.png,x\n".encode("utf-16-be"), [A]),
    "UTF-32": ("s.csv", "image,label\na.png,x\n".encode("utf-32"), [A]),
    "Excel's line": ("s.csv", "\ufeffsep=;\r\nimage;label\r\na.png;x\r\nb.png;y\r\n", [A, B]),
    "suffix in capitals": ("s.CSV", "image,label\na.png,x\nb.png,y\n", [A, B]),
    "suffix in both": ("s.Csv", "image,label\na.png,x\n", [A]),
    "header with a space": ("s.csv", "image, label\na.png, x\nb.png, y\n", [A, B]),
    "header in capitals": ("s.csv", "Image,LABEL,Split\na.png,x,TRAIN\nb.png,y,Test\n", [A, (*B, "Test")]),
    "all columns": (
        "s.csv",
        "group,split,source,label,mask,image\np1,val,S,x,m/a.png,a.png\n,,,y,,b.png\n",
        [("a.png", "x", "m/a.png", "S", "validation", "p1"), B],
    ),
    "empty lines": ("s.csv", "\n\nimage,label\n\na.png,x\n  \n,\nb.png,y\n\n", [A, B]),
    "commas at the end": ("s.csv", "image,label,\na.png,x,\nb.png,y,,,\n", [A, B]),
    "spaces": ("s.csv", "image,label\n  a.png , x\u00a0\nb.png,\ty \n", [A, B]),
    "quotes": ("s.csv", 'image,label\n"a,1.png","x ""y"""\n', [("a,1.png", 'x "y"')]),
    "a field of 140 kB": ("s.csv", f"image,label,report\na.png,x,{LONG}\nb.png,y,\n", [A, B]),
    "superscripts": ("s.csv", "image,label\na.png,²\nb.png,10\nc.png,9\n", [("a.png", "²"), ("b.png", "10"), ("c.png", "9")]),
    "markup": ("s.csv", "image,label\na.png,[/red]\nb.png,[bold]\n", [("a.png", "[/red]"), ("b.png", "[bold]")]),
    "composed": ("s.csv", "image,label\na.png,a\u0308\nb.png,ä\n", [("a.png", "ä"), ("b.png", "ä")]),
    "words like numbers": ("s.csv", "image,label\na.png,1e\nb.png,infinity\n", [("a.png", "1e"), ("b.png", "infinity")]),
    "the same row twice": ("s.csv", "image,label\na.png,x\na.png,x\n", [A, A]),
    "up and down": ("s.csv", "image,label\n../{root}/there.png,x\n", [("there.png", "x")]),
    "backslashes": ("s.csv", "image,label\nsub\\there.png,x\n", [("sub/there.png", "x")]),
    "backslash in a name": ("s.csv", "image,label\nback\\slash.png,x\n", [("back\\slash.png", "x")]),
    "the home folder": ("s.csv", "image,label\n~/there.png,x\n", [("there.png", "x")]),
    "a folder called ~": ("s.csv", "image,label\n~/here.png,x\n", [("~/here.png", "x")]),
    "an absolute path": ("s.csv", "image,label\n{absolute}/there.png,x\n", [("there.png", "x")]),
    "several labels": ("s.csv", "image,edema,mass\na.png,1,0\nb.png,0.0,TRUE\n", [("a.png", (1, 0)), ("b.png", (0, 1))]),
    "an index without a name": ("s.csv", ",image,label\n0,a.png,x\n1,b.png,y\n", [A, B]),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a few files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("there.png", "sub/there.png", "back\\slash.png", "~/here.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def written(place: Path, name: str, content: bytes | str) -> Path:
    if isinstance(content, str):
        content = content.replace("{root}", place.name).replace("{absolute}", str(place)).encode()
    (place / name).write_bytes(content)
    return place / name


@pytest.mark.parametrize("case", READ)
def test_manifests_are_read(place: Path, case: str) -> None:
    name, content, expected = READ[case]
    table = read_table(written(place, name, content))
    assert told(table, place) == expected
    assert table.multi_label == isinstance(expected[0][1], tuple) == ("multi-label" in codes(table))


HEAD = "image,label\n"
REFUSED: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "s.csv: no rows"),
    "blank": ("\n \n", "s.csv: no rows"),
    "header alone": (HEAD, "s.csv: no rows"),
    "no header": ("a.png,x\nb.png,y\n", "no column 'image'; its columns are 'a.png', 'x'"),
    "filename": ("filename,label\na.png,x\n", "no column 'image'; its columns are 'filename', 'label' (filename? then call it image)"),
    "path": ("Path;label\na.png;x\n", "(Path? then call it image)"),
    "class": ("image,class\na.png,x\n", "no column 'label'; its columns are 'class' (class? then call it label)"),
    "target of bits": ("image,target\na.png,1\n", "(target? then call it label)"),
    "class among bits": ("image,class,mass\na.png,1,0\n", "(class? then call it label)"),
    "one column of bits": ("image,pneumonia\na.png,1\n", "no column 'label'; its columns are 'pneumonia'. For several 0/1 labels"),
    "other numbers": ("image,edema,age\na.png,1,61\n", "'age' holds other values than 0 and 1"),
    "nothing further": ("image\na.png\n", "no column 'label'; there are no further columns"),
    "mistyped": ("image,label,spilt\na.png,x,test\n", "column 'spilt' is not read: if it is meant as 'split'"),
    "mistyped, bits": ("image,edema,lable\na.png,1,0\n", "no column 'label'; its columns are 'edema', 'lable' (lable? then call it label)"),
    "patients among bits": ("image,edema,patient_id\na.png,1,0\n", "no column 'label'; its columns are 'edema', 'patient_id'"),
    "two labels": ("image,label,Label\na.png,x,y\n", "two columns 'label' ('label' and 'Label')"),
    "two images": ("image,image,label\na.png,b.png,x\n", "two columns 'image'"),
    "two bits of one name": ("image,a,b,a\na.png,1,0,1\n", "two columns of one name among a, b, a"),
    "Latin-1": ("image,label\na.png,x\nb.png,Lungenentzündung\n".encode("latin-1"), "s.csv, row 3: no utf-8 text (byte 0xfc)"),
    "UTF-16 without a mark": (HEAD.encode("utf-16-le"), "s.csv, row 1: a NUL character; save the table as UTF-8"),
    "half a UTF-16 unit": (b"\xff\xfe" + HEAD.encode("utf-16-le") + b"a", "no utf-16 text"),
    "NUL": (f"{HEAD}a.png,x\nb\0.png,y\n", "s.csv, row 3: a NUL character"),
    "short row": (f"{HEAD}a.png,x\nb.png\n", "s.csv, row 3: 1 cells, but the header has 2"),
    "long row": (f"{HEAD}a.png,x,z\n", "s.csv, row 2: 3 cells, but the header has 2"),
    "row after empty lines": (f"{HEAD}\n\na.png,x\n\nb.png\n", "s.csv, row 6: 1 cells"),
    "row after Excel's line": (f"sep=,\n{HEAD}a.png,x\nb.png\n", "s.csv, row 4: 1 cells"),
    "quote at the end": (f'{HEAD}a.png,"x\nb.png,y\n', "s.csv, row 2: unexpected end of data; is a quote not closed?"),
    "two open quotes": (f'{HEAD}a.png,"x\nb.png,"y\n', "s.csv, row 2: "),
    "quotes that swallow a row": (f'{HEAD}a.png,"x\nb.png,y"\n', "s.csv, row 2, label: a cell of several lines"),
    "no image": (f"{HEAD}a.png,x\n,y\n", "s.csv, row 3: no image"),
    "no label": (f"{HEAD}a.png,x\nb.png, \n", "s.csv, row 3: no label"),
    "two labels for an image": (f"{HEAD}a.png,x\nb.png,y\n./a.png,y\n", "s.csv, rows 2 and 4: "),
    "labels in two cases": (f"{HEAD}a.png,COVID\nb.png,covid \n", "classes 'COVID' and 'covid' differ only in case"),
    "spaces inside": (f"{HEAD}a.png,no finding\nb.png,no  finding\n", "differ only in case, spaces"),
    "full width": (f"{HEAD}a.png,A1\nb.png,\uff21\uff11\n", "differ only in case"),
    "unseen": (f"{HEAD}a.png,covid\nb.png,covid\u200b\n", "differ only in case, spaces, unseen"),
    "numbers alike": (f"{HEAD}a.png,1\nb.png,1.0\n", "'1' and '1.0' differ only"),
    "zeros in front": (f"{HEAD}a.png,1\nb.png,01\n", "'01' and '1' differ only"),
    "splits in two cases": ("image,label,split\na.png,x,Test\nb.png,y,test\n", "splits 'Test' and 'test' differ"),
    "a name that is too long": (f"{HEAD}a.png,x\n{LONG},y\n", "row 3: 'nnnn"),
    "a user that is unknown": (f"{HEAD}~nobody-here/a.png,x\n", "row 2: '~nobody-here/a.png' cannot be a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_manifests_are_refused_in_one_line(place: Path, case: str) -> None:
    content, text = REFUSED[case]
    path = written(place, "s.csv", content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert text in str(caught.value) and "\n" not in str(caught.value) and "s.csv" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_label_columns_by_name(place: Path) -> None:
    path = written(place, "s.csv", "image, Edema ,mass,age\na.png,1,0,61\nb.png,0,1,2\n")
    table = read_table(path, labels=["edema", "mass"])
    assert table.classes == ("Edema", "mass") and table.unread == ("age",)
    assert codes(table) == {"multi-label": 2, "one-hot": 0}
    for labels, text in (
        (["edem"], "no column edem; its columns are image,  Edema , mass, age"),
        (["mass", "Mass"], "a column is named twice"),
        (["age"], "row 2, column age: a label must be 0 or 1, got '61'"),
    ):
        with pytest.raises(DataError) as caught:
            read_table(path, labels=labels)
        assert text in str(caught.value)
    blank = written(place, "t.csv", "image,a,b\na.png,1,0\nb.png,,1\n")
    with pytest.raises(DataError, match=r"row 3, column a: a label must be 0 or 1, got ''"):
        read_table(blank, labels=["a", "b"])


def test_the_limit_of_fields_stays_the_programs_own(place: Path) -> None:
    import csv

    before = csv.field_size_limit()
    read_table(written(place, "s.csv", f"image,label,report\na.png,x,{LONG}\n"))
    assert csv.field_size_limit() == before


NONE = float("nan")
PARQUET: dict[str, tuple[dict[str, list[Any]], list[tuple[Any, ...]] | str]] = {
    "texts": ({"image": ["a.png", "b.png"], "label": ["x", "y"]}, [A, B]),
    "whole numbers": ({"image": ["a.png", "b.png"], "label": [1, 0]}, [("a.png", "1"), ("b.png", "0")]),
    "floats": ({"image": ["a.png", "b.png"], "label": [1.0, 0.0]}, [("a.png", "1"), ("b.png", "0")]),
    "truth values": ({"image": ["a.png", "b.png"], "label": [True, False]}, [("a.png", "True"), ("b.png", "False")]),
    "bits": ({"image": ["a.png"], "p": [True], "q": [0.0]}, [("a.png", (1, 0))]),
    "missing cells": (
        {"image": ["a.png", "b.png"], "label": ["x", "y"], "mask": [None, "m"], "group": [NONE, 7.0], "source": ["", None]},
        [A, ("b.png", "y", "m", "7")],
    ),
    "headers in capitals": ({"Image": ["a.png"], " LABEL": ["x"]}, [A]),
    "no label": ({"image": ["a.png", "b.png"], "label": [1.0, NONE]}, "row 3: no label"),
    "no image": ({"image": ["a.png", None], "label": ["x", "y"]}, "row 3: no image"),
    "infinity": ({"image": ["a.png"], "label": [float("inf")]}, "row 2, label: expected a text or a finite number"),
    "lists": ({"image": ["a.png"], "label": [["x", "y"]]}, "row 2, label: expected a text or a number"),
    "bytes": ({"image": [b"PNG"], "label": ["x"]}, "row 2, image: expected a text or a number"),
    "class": ({"image": ["a.png"], "class": [1]}, "(class? then call it label)"),
    "alike": ({"image": ["a.png", "b.png"], "label": ["x", "X y"], "split": ["Test", "test"]}, "splits 'Test' and"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARQUET)
def test_parquet(place: Path, case: str) -> None:
    import pandas

    columns, expected = PARQUET[case]
    pandas.DataFrame(columns).to_parquet(place / "s.Parquet")
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            read_table(place / "s.Parquet")
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    else:
        assert told(read_table(place / "s.Parquet"), place) == expected


def test_parquet_with_an_index_and_broken_files(place: Path) -> None:
    import pandas

    path = place / "s.parquet"
    pandas.DataFrame({"label": ["x"]}, index=pandas.Index(["a.png"], name="image")).to_parquet(path)
    assert told(read_table(path), place) == [A]
    for content in (b"", b"PAR1", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"s\.parquet: cannot be read as Parquet"):
            read_table(path)
