"""isnet data check: each finding on a set made for it, the text, the JSON and the preview; and the same findings in training."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import encoded, images, lay, mask, png
from PIL import Image
from test_isnet_own_images import SHORT, folder  # noqa: F401
from typer.testing import CliRunner

from isnet import cli
from isnet.data import FileRef, ImageTable, MaskedImages, Record, check, examine, read_table
from isnet.data.checks import FACT_CHECKS, TABLE_CHECKS
from isnet.data.checks.seen import gives_away

SIDE = 16


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def checked(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON of a check."""
    return json.loads(run("data", "check", *arguments, "--size", SIDE, "--json", "-", code=code))


def found(told: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Code -> severity and number of examples."""
    return {finding["code"]: (finding["severity"], len(finding["examples"])) for finding in told["findings"]}


def plain(count: int = 12, splits: tuple[str, ...] = ("train", "test")) -> dict[str, Any]:
    """Two classes, masks in the middle, nothing to find but the one mask."""
    files: dict[str, Any] = {}
    for split in splits:
        for name in "ab":
            for number in range(count):
                files[f"images/{split}/{name}/{number}.png"] = png((split, name, number), SIDE)
                files[f"masks/{split}/{name}/{number}.png"] = mask(SIDE)
    return files


def drawn(**changes: Any) -> bytes:
    """A mask of 16x16: slices of rows and columns by value."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[changes.get("rows", slice(None)), changes.get("columns", slice(None))] = 255
    return encoded(255 - pixels if changes.get("inverted") else pixels)


def noise(seed: int, *shape: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8))


def without(place: str, start: int = 0) -> dict[str, None]:
    """The images and masks of a folder, from a number on, gone."""
    return {f"{kind}/{place}/{number}.png": None for kind in ("images", "masks") for number in range(start, 12)}


SAME = {"mask-same": ("note", 0)}
MIDDLE = slice(5, 11)
AREAS = encoded(np.pad(np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((4, 4), np.uint8)), 4))
SPECK = np.pad(np.full((1, 1), 255, np.uint8), (3, 12))
WIDE_MASK = encoded(np.repeat(np.asarray(Image.open(io.BytesIO(mask(SIDE)))), 2, 1))
FLAT = encoded(np.full((SIDE, SIDE), 7, np.uint8))
THIRD = png(("train", "a", 3), SIDE)  # images/train/a/3.png
AS_BMP = encoded(np.asarray(Image.open(io.BytesIO(THIRD))), "BMP")
LARGE = {f"images/train/a/{n}.png": png((n, "large"), 24) for n in range(12)}
# What is changed in the set, and what is found beside the one mask: code -> (severity, examples).
CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, int]]]] = {
    "nothing": ({}, SAME),
    "all white": ({"masks/train/a/0.png": drawn()}, {"mask-full": ("warning", 1)}),
    "inverted": (
        {f"masks/train/a/{n}.png": drawn(rows=MIDDLE, columns=MIDDLE, inverted=True) for n in range(3)},
        {"mask-inverted": ("warning", 3)},
    ),
    "the border": (
        {"masks/test/b/1.png": drawn(rows=slice(7, 9), inverted=True)},
        {"mask-border": ("warning", 1)},
    ),
    "an empty mask": (
        {"masks/train/a/0.png": drawn(rows=slice(0, 0))},
        {**SAME, "unusable-masks": ("error", 1)},
    ),
    "no mask in training": ({"masks/train/a/0.png": None}, {**SAME, "unusable-masks": ("error", 1)}),
    "no mask in a test": ({"masks/test/a/0.png": None}, {**SAME, "test-masks-missing": ("note", 1)}),
    "a broken image": ({"images/test/a/0.png": b"text"}, {**SAME, "unusable-images": ("error", 1)}),
    "an empty file": ({"images/test/a/0.png": b""}, {**SAME, "unusable-images": ("error", 1)}),
    "a constant image": ({"images/test/a/0.png": FLAT}, {**SAME, "unusable-images": ("error", 1)}),
    "another label": ({"images/train/b/5.png": THIRD}, {**SAME, "label-conflict": ("error", 1)}),
    "other bytes": ({"images/train/b/5.png": AS_BMP}, {**SAME, "label-conflict": ("error", 1)}),
    "another split": ({"images/test/a/5.png": THIRD}, {**SAME, "duplicates-across-splits": ("warning", 1)}),
    "the same split": ({"images/train/a/5.png": THIRD}, {**SAME, "duplicates": ("warning", 1)}),
    "nearly black": ({"images/train/a/0.png": encoded(SPECK)}, {**SAME, "nearly-black": ("warning", 1)}),
    "saturated": ({"images/train/a/0.png": encoded(255 - SPECK)}, {**SAME, "saturated": ("warning", 1)}),
    "colour in a class": (
        {f"images/train/a/{n}.png": noise(n, SIDE, SIDE, 3) for n in range(12)},
        {**SAME, "colour-and-grey": ("warning", 0)},
    ),
    "a colour image": ({"images/train/a/0.png": noise(0, SIDE, SIDE, 3)}, {**SAME, "colour-and-grey": ("note", 0)}),
    "sizes": (
        {**LARGE, **{name.replace("images", "masks"): mask(24) for name in LARGE}},
        {"size-tells-class": ("warning", 2)},
    ),
    "shapes": (
        {"images/train/a/0.png": noise(1, SIDE, 2 * SIDE), "masks/train/a/0.png": WIDE_MASK},
        {**SAME, "aspect-ratios": ("note", 2)},
    ),
    "labels": (
        {"masks/train/a/0.png": AREAS},
        {"mask-values": ("note", 1)},
    ),
    "a picture as mask": (
        {"masks/train/a/0.png": noise(3, SIDE, SIDE), "masks/train/a/1.png": AREAS},
        {"mask-grey": ("warning", 1), "mask-readings": ("warning", 2), "mask-values": ("note", 1)},
    ),
    "a text": ({"images/notes.txt": b"x"}, {**SAME, "files-left-out": ("note", 1)}),
    "a class of three": (without("train/b", 3), {**SAME, "small-classes": ("warning", 1)}),
    "no training images of a class": (
        without("train/b"),
        {**SAME, "class-not-in-training": ("error", 0), "empty-folders": ("warning", 1)},
    ),
    "a test without a class": (
        without("test/b"),
        {**SAME, "class-not-in-split": ("warning", 1), "empty-folders": ("warning", 1)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings(tmp_path: Path, case: str) -> None:
    changes, expected = CASES[case]
    worst = min((severity for severity, _ in expected.values()), key=["error", "warning", "note"].index)
    lay(tmp_path, plain())
    for name, content in changes.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            lay(tmp_path, {name: content})
    told = checked(tmp_path, code=worst == "error")
    assert found(told) == expected
    assert told["verdict"] == ("ok" if worst == "note" else worst)
    severities = [finding["severity"] for finding in told["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def table_of(*rows: tuple[str, str, str, str, str]) -> ImageTable:
    """(image, class, split, source, group) of each image."""
    names = tuple(sorted({row[1] for row in rows}))
    return ImageTable(
        tuple(
            Record(FileRef(Path(image)), names.index(label), FileRef(Path(f"m/{image}")), source, split, group)
            for image, label, split, source, group in rows
        ),
        names,
    )


def test_findings_of_tables() -> None:
    rows = [(f"{name}{n}", name, "train", f"H{name}", f"{name}{n}") for name in "ab" for n in range(12)]
    told = {finding.code: finding for finding in check(table_of(*rows))}
    assert set(told) == {"source-tells-class"} and "tells the class of 100 %" in told["source-tells-class"].text
    mixed = [(image, label, split, f"H{n % 2}", group) for n, (image, label, split, _, group) in enumerate(rows)]
    assert not check(table_of(*mixed))
    many = [(f"c{n}", "b", "train", "", "") for n in range(200)]
    assert {finding.code for finding in check(table_of(*mixed, *many))} == {"imbalance"}
    shared = [("t", "a", "test", "", "a1"), ("u", "b", "test", "", "b1")]
    told = {finding.code: finding for finding in check(table_of(*mixed, *shared))}
    assert told["groups-across-splits"].examples == ("a1", "b1") and len(told) == 1
    unnamed = [(image, label, split, source, "nan") for image, label, split, source, _ in mixed]
    assert {finding.code for finding in check(table_of(*unnamed))} == {"missing-value"}
    several = [(f"j{n}", "a | b", "train", "", "") for n in range(12)]
    told = {finding.code: finding for finding in check(table_of(*mixed, *several))}
    assert told["joined-labels"].examples == ("a | b",) and len(told) == 1
    same = ImageTable((Record(FileRef(Path("x")), 0, FileRef(Path("x"))),), ("a",))
    assert {"mask-is-image", "single-class", "small-classes"} == {finding.code for finding in check(same)}


def test_what_gives_a_class_away_is_judged_without_the_image_itself() -> None:
    assert gives_away([(n, n % 2) for n in range(40)]) is None  # each value once: nothing is told
    assert gives_away([(n % 2, n % 2) for n in range(40)]) == (1.0, 0.5)
    assert gives_away([(0, n % 2) for n in range(40)]) is None
    assert gives_away([(1, 1)] * 9) is None


def test_every_code_is_documented_and_every_other_is_gone() -> None:
    root = Path(__file__).parents[1]
    sources = "".join(path.read_text() for path in (root / "python" / "isnet" / "data").rglob("*.py"))
    used = set(re.findall(r'Finding\(\s*"([a-z-]+)"', sources))
    table = (root / "docs" / "data.md").read_text().partition("| code |")[2].partition("\n\n")[0]
    documented = {code for line in table.splitlines()[2:] for code in re.findall(r"`([a-z-]+)`", line.split("|")[1])}
    assert used <= documented and len(used) > 25
    assert {code for code in documented if f'"{code}"' not in sources} == set()
    assert {check for check in (*TABLE_CHECKS, *FACT_CHECKS) if not check.__doc__} == set()


def test_the_json_says_all(tmp_path: Path) -> None:
    lay(tmp_path / "set", plain())
    told = checked(tmp_path / "set")
    assert set(told) == {
        "schema", "data", "verdict", "images", "usable", "seconds", "classes", "multi_label", "splits", "findings", "statistics",
    }  # fmt: skip
    assert (told["schema"], told["images"], told["usable"], told["classes"]) == (1, 48, 48, ["a", "b"])
    assert told["splits"][0] == {"split": "train", "source": "train", "images": 24, "classes": {"a": 12, "b": 12}}
    row = told["statistics"][0]
    assert (row["split"], row["class"], row["images"], row["masks"]) == ("train", "a", 12, 12)
    assert row["foreground"] == {"min": 16 / 256, "median": 16 / 256, "max": 16 / 256}
    assert row["border"]["max"] == 0 and row["height"]["max"] == SIDE and 0.2 < row["brightness"]["median"] < 0.6
    out = tmp_path / "out.json"
    run("data", "check", tmp_path / "set", "--size", SIDE, "--json", out)
    again = json.loads(out.read_text())
    assert {**again, "seconds": 0} == {**told, "seconds": 0}


def test_the_text_has_80_columns_and_shows_names_as_they_are(tmp_path: Path) -> None:
    names = ("[/red]", "[bold]x", ":smile:", "\x1b[31mred", "\u202eab", "c" * 100)
    rows = [["image", "mask", "label", "split"]]
    for label, name in enumerate(names):
        for number in range(12):
            image = f"{label}-{number}.png"
            lay(tmp_path, {image: png(image, SIDE), "mask.png": mask(SIDE)})
            rows.append([image, "mask.png", name, "train" if number < 10 else "a\tb[/]"])
    with (tmp_path / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    printed = run("data", "check", tmp_path / "set.csv", "--size", SIDE, "--preview", tmp_path / "p.png")
    first = printed.splitlines()[1]
    assert first.startswith(f"{tmp_path}/set.csv: 1 note. It can be trained on.")
    for shown in ("[/red]", "[bold]x", ":smile:", "\\x1b[31mred", "\\u202eab", "a\\tb[/]"):
        assert shown in "".join(printed.split()), shown
    assert "\x1b" not in printed and "\u202e" not in printed
    table = printed[printed.index("split ") :].splitlines()
    assert max(map(len, table[:-1])) <= 80
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_preview_of_names_with_dollars_and_of_unusable_masks(tmp_path: Path) -> None:
    files = images("images/$x^{/1.png", "images/$\\frac$/2.png", "masks/$x^{/1.png")
    lay(tmp_path / "set", files | {"masks/$\\frac$/2.png": b"no mask"})
    run("data", "check", tmp_path / "set", "--size", SIDE, "--preview", tmp_path / "p.pdf", code=1)
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("option", "name", "text"),
    [
        ("--preview", "p.xyz", "--preview: expected a file of the format"),
        ("--preview", "set", "set is a folder or below a file"),
        ("--json", "set/images/a/1.png/x.json", "is a folder or below a file"),
    ],
)
def test_places_for_results_are_checked_before_anything_is_read(
    tmp_path: Path, option: str, name: str, text: str
) -> None:
    lay(tmp_path / "set", images("images/a/1.png") | {"images/a/2.png": b"broken"})
    result = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path / "set"), option, str(tmp_path / name)])
    assert isinstance(result.exception, ValueError) and text in str(result.exception) and "reading" not in result.output


def test_processes_see_what_one_sees(tmp_path: Path) -> None:
    lay(tmp_path, plain(3) | {"images/train/a/9.png": b"broken"})
    images = MaskedImages(read_table(tmp_path), SIDE, channels=3, need_masks=("train",))
    alone, together = examine(images, workers=0), examine(images, rows=[9, 0, 2], workers=2)
    assert together[1:] == [alone[row] for row in (0, 2)] and together[0].row == 9 and together[0].problem
    assert [seen.row for seen in alone] == list(range(13)) and alone[9].problem is not None


def test_training_warns_by_the_same_checks(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    middle = np.zeros((SIDE, SIDE), np.uint8)
    middle[4:12, 4:12] = 255
    inverted = folder / "masks" / "train" / "dark" / "3.png"
    Image.fromarray(255 - middle).save(inverted)
    printed = run("train", tmp_path / "run", "--data", folder, "--variant", "selective", "--c1", 1, "--c2", 25, *SHORT)
    lines = [line for line in printed.splitlines() if line.startswith("Warning: ")]
    assert any("1 of 36 masks that look inverted" in line and str(inverted) in line for line in lines)
    assert all("note" not in line for line in lines)
    quiet = run("train", tmp_path / "q", "--data", folder, *SHORT, "--quiet")
    assert quiet == ""
