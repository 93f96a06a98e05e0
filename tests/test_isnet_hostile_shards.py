"""Shards as people have them: the right table, or one line that names shard and sample; never a silent misreading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile import codes, images, lay, mask, png, shard

from isnet.data import DataError, MaskedImages, read_table

T, V = "train", "validation"

WHOLE = [("1.png", png(1)), ("1.mask.png", mask())]


def described(label: object, **more: object) -> tuple[str, bytes]:
    return "1.json", json.dumps({"label": label, **more}).encode()


# Members -> (classes, label, source, split, group) of the first image.
SHARDS: dict[str, tuple[list[tuple[str, bytes]], tuple[Any, ...]]] = {
    "a class": ([*WHOLE, ("1.cls", b" 7\r\n")], (("7",), 0, "", T, "")),
    "a byte-order mark": ([*WHOLE, ("1.cls", b"\xef\xbb\xbfcovid")], (("covid",), 0, "", T, "")),
    "null is nothing": ([*WHOLE, described("a", source=None, split=None, group=None)], (("a",), 0, "", T, "")),
    "a whole float": ([*WHOLE, described(1.0, group=3.0)], (("1",), 0, "", T, "3")),
    "a truth value": ([*WHOLE, described(True)], (("True",), 0, "", T, "")),
    "keys in capitals": ([*WHOLE, ("1.json", b'{" Label": "a", "SPLIT": "Val"}')], (("a",), 0, "", V, "")),
    "both agree": ([*WHOLE, ("1.cls", b"3"), described(3)], (("3",), 0, "", T, "")),
    "several labels": ([*WHOLE, described([1, 0, True, 0.0])], (("0", "1", "2", "3"), (1, 0, 1, 0), "", T, "")),
    "superscript": ([*WHOLE, ("1.cls", "²".encode())], (("²",), 0, "", T, "")),
    "spaces": ([*WHOLE, described(" a ", source=" B ")], (("a",), 0, "B", T, "")),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_are_read(tmp_path: Path, case: str) -> None:
    members, expected = SHARDS[case]
    table = read_table(shard(tmp_path / "x.TAR", members))
    first = table.records[0]
    assert (table.classes, first.label, first.source, first.split, first.group) == expected
    assert MaskedImages(table, 8)[0][2].sum() == 16


BAD_SHARDS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "null as a label": ([*WHOLE, described(None)], "neither .cls nor a label"),
    "another key": ([*WHOLE, ("1.json", b'{"class": "a"}')], "neither .cls nor a label in .json; its .json has 'class'"),
    "a key twice": ([*WHOLE, ("1.json", b'{"label": 1, "label": 2}')], "'label' stands there twice"),
    "a key in two cases": ([*WHOLE, ("1.json", b'{"label": 1, "Label": 2}')], "two columns 'label'"),
    "not a number": ([*WHOLE, ("1.json", b'{"label": NaN}')], "no label"),
    "infinity": ([*WHOLE, ("1.json", b'{"label": Infinity}')], "a finite number, got inf"),
    "an object": ([*WHOLE, described({"a": 1})], "expected a text or a number, got {'a': 1} of type dict"),
    "an object as group": ([*WHOLE, described("a", group=["p"])], "group: expected a text or a number"),
    "a list of names": ([*WHOLE, described(["edema"])], "a label must be 0 or 1, got 'edema'"),
    "null in a list": ([*WHOLE, described([1, None])], "a label must be 0 or 1, got ''"),
    "an empty list": ([*WHOLE, described([])], "samples have 0 labels"),
    "disagreement": ([*WHOLE, ("1.cls", b"3"), described(4)], ".cls says '3', and .json 4; leave one"),
    "two images": ([*WHOLE, ("1.jpg", png(2)), ("1.cls", b"1")], "sample 1 has 2 images, jpg, png"),
    "two masks": ([*WHOLE, ("1.mask.bmp", mask()), ("1.cls", b"1")], "sample 1 has 2 masks"),
    "a member twice": ([*WHOLE, ("1.png", png(2)), ("1.cls", b"1")], "two members 1.png"),
    "classes alike": ([*WHOLE, ("1.cls", b"COVID"), ("2.png", png(2)), ("2.cls", b"covid")], "differ only in case"),
    "numbers alike": ([*WHOLE, ("1.cls", b"1"), ("2.png", png(2)), ("2.cls", b"1.0")], "'1' and '1.0' differ only"),
    "kinds": ([*WHOLE, described(True), ("2.png", png(2)), ("2.json", b'{"label": 1}')], "some are true or false"),
    "one and several": ([*WHOLE, described([1, 0]), ("2.png", png(2)), ("2.cls", b"1")], "some have one label and some"),
    "not UTF-8": ([*WHOLE, ("1.cls", b"\xff")], "sample 1: 'utf-8' codec can't decode"),
    "too deep": ([*WHOLE, ("1.json", b"[" * 200_000)], "nested too deeply"),
    "no JSON": ([*WHOLE, ("1.json", b"{label: 1}")], "sample 1: Expecting property name"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_shards_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    members, text = BAD_SHARDS[case]
    with pytest.raises(DataError) as caught:
        read_table(shard(tmp_path / "x.tar", members))
    assert text in str(caught.value).replace("some samples", "some") and "\n" not in str(caught.value)
    assert "x.tar" in str(caught.value)


def test_shards_cut_short_and_what_lies_beside_them(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("1.cls", b"1"), ("1.png", png(1, 64)), ("1.txt", b"x"), ("2.cls", b"1")])
    with pytest.raises(DataError, match="sample 2 has no image"):
        read_table(path)
    whole = shard(path, [("1.cls", b"1"), ("1.txt", b"x"), ("1.png", png(1, 64))]).read_bytes()
    assert codes(read_table(path)) == {"files-left-out": 1}
    lay(tmp_path, images("a/1.png") | {"y.tar/x": "a folder", "._z.tar": b"macOS"})
    assert codes(read_table(tmp_path)) == {"files-left-out": 1, "beside-shards": 2}
    for length in (0, 100, 512, 2000, 4000):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.tar: "):
            read_table(path)
