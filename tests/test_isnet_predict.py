"""isnet predict and explain: any source, rows in order, nothing lost, work that goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import invoke, tiny  # noqa: F401

from isnet.data import DataError
from isnet.data.sources import UNKNOWN, read_sources
from isnet.runs import load_run, predict
from isnet.runs.answers import answer_row, columns, named, to_csv

Tiny = tuple[Path, Path]
CLASSES = ("dark", "light")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    told = invoke("predict", run, data, "--out", tmp_path / "p.csv", "--heatmaps", tmp_path / "maps")
    assert "36 images" in told and "images per second on cpu" in told and "Device: cpu" in told
    found = rows(tmp_path / "p.csv")
    assert list(found[0]) == columns(CLASSES, picture=True) and not any(row["error"] for row in found)
    assert [row["image"] for row in found] == sorted(row["image"] for row in found)
    assert {(row["label"], row["split"]) for row in found} == {(c, s) for c in CLASSES for s in ("train", "test")}
    for row in found:
        chances = {name: float(row[f"probability_{name}"]) for name in CLASSES}
        assert sum(chances.values()) == pytest.approx(1) and row["answer"] == max(chances, key=chances.__getitem__)
        assert 0 <= float(row["background_share"]) <= 1
        with Image.open(tmp_path / "maps" / row["picture"]) as picture:
            assert picture.size == (32, 16)
    one = load_run(run)
    image = predict.Cases(predict.images_config(one.config), read_sources([data], CLASSES).records)[0][0]
    assert image is not None
    expected = one.model(image[None]).softmax(1)[0, 0].item()
    assert float(found[0]["probability_dark"]) == pytest.approx(expected, abs=1e-6)


def test_evaluate_writes_the_same_table(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    invoke("evaluate", run, "--resamples", 0, "--no-sensitivity")
    invoke("predict", run, data / "images" / "test", "--masks", data / "masks" / "test", "--out", tmp_path / "p.csv")
    ours, theirs = rows(run / "predictions-test.csv"), rows(tmp_path / "p.csv")
    assert [(r["image"], r["answer"], r["background_share"]) for r in ours] == [
        (r["image"], r["answer"], r["background_share"]) for r in theirs
    ]


def shard(path: Path, images: list[Path], *, labelled: bool) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            archive.add(image, f"{number:03d}.png")
            if labelled:
                content = image.parent.name.encode()
                info = tarfile.TarInfo(f"{number:03d}.cls")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_sources_of_every_kind(tiny: Tiny, tmp_path: Path) -> None:
    test = tiny[1] / "images" / "test"
    images = sorted(test.rglob("*.png"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, image in enumerate(images[:3]):
        shutil.copy(image, flat / f"{number}.png")
    plain, labelled = tmp_path / "plain.csv", tmp_path / "labelled.tsv"
    plain.write_text(f"image,age\n{images[0]},71\n{images[1]},8\n")
    labelled.write_text(f"image\tlabel\n{images[0]}\tlight\n{images[1]}\tgrey\n")
    (tmp_path / "patients" / "a").mkdir(parents=True)
    shutil.copy(images[0], tmp_path / "patients" / "a" / "x.png")
    for source, labels in (
        (images[0], [UNKNOWN]),
        (f"{test}/*/1.png", [UNKNOWN] * 2),
        (f"{test}/**/*.png", [UNKNOWN] * 12),
        (flat, [UNKNOWN] * 3),
        (test, [0] * 6 + [1] * 6),
        (plain, [UNKNOWN] * 2),
        (labelled, [1, UNKNOWN]),
        (tmp_path / "patients", [UNKNOWN]),
        (shard(tmp_path / "plain.tar", images[:2], labelled=False), [UNKNOWN] * 2),
        (shard(tmp_path / "named.tar", images[5:7], labelled=True), [0, 1]),
    ):
        assert [record.label for record in read_sources([source], CLASSES).records] == labels, source
    assert read_sources([labelled], CLASSES).unknown == ("grey",)
    both = read_sources([images[3], flat, images[1]], CLASSES).records
    assert [str(record.image) for record in both] == [
        str(images[3]), *(str(flat / f"{n}.png") for n in range(3)), str(images[1])
    ]  # fmt: skip
    masked = read_sources([images[0]], CLASSES, masks=tiny[1] / "masks" / "test" / "dark").records[0]
    assert str(masked.mask).endswith("masks/test/dark/0.png")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("nothing.png", "nothing.png does not exist"),
        ("", "an empty text does not exist"),
        ("no*.png", "matches nothing"),
        ("*.txt", "none of which is an image"),
        ("empty", "holds no image"),
        ("bare.csv", "no column 'image'"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    Path("empty").mkdir()
    Path("bare.csv").write_text("file\nx.png\n")
    with pytest.raises(DataError, match=text):
        read_sources([source], CLASSES)


def test_broken_images_are_rows(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    good = data / "images" / "test" / "dark" / "0.png"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shutil.copy(good, tmp_path / "fine.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "masks" / "fine.png")
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,mask\nbroken.png,\ngone.png,\nfine.png,masks/fine.png\n")
    told = invoke("predict", run, manifest, "--out", tmp_path / "p.csv", code=1)
    assert "3 images have an error (column error)" in told
    broken, gone, fine = rows(tmp_path / "p.csv")
    assert "broken.png" in broken["error"] and broken["answer"] == "" and "gone.png" in gone["error"]
    assert fine["answer"] in CLASSES and fine["background_share"] == "" and "masks/fine.png" in fine["error"]


def test_hostile_names(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tiny[1] / "images" / "test" / "dark" / "0.png"
    monkeypatch.chdir(tmp_path)
    names = ["=cmd.png", "+1.png", "@x.png", "-2.png", "a,b.png", 'q"uote.png', "line\nbreak.png", "ünï.png"]
    for name in names:
        shutil.copy(good, name)
    invoke("predict", tiny[0], *(f"./{name}" if name.startswith("-") else name for name in names), "--out", "p.csv")
    found = rows(Path("p.csv"))
    assert [os.path.normpath(row["image"]) for row in found] == names and all(Path(r["image"]).is_file() for r in found)
    assert not any(row["image"].startswith(("=", "+", "-", "@")) for row in found)


def test_cells_that_a_spreadsheet_would_run() -> None:
    text = to_csv(
        [{"image": "=a.png", "answer": "=1+1", "label": "-1", "error": "@sum"}],
        ["image", "answer", "label", "error"],
        header=False,
    )
    assert text == "./=a.png,'=1+1,-1,'@sum\n"
    assert to_csv([{"image": "a\udce9.png"}], ["image"], header=False) == "a\\udce9.png\n"
    assert columns(("=x",))[2] == "probability_=x"


def test_rows_of_one_image() -> None:
    row = answer_row("x", torch.tensor([float("nan"), 1.0]), CLASSES)
    assert row["error"] == "the network's answer is not finite" and "answer" not in row
    several = answer_row("x", torch.tensor([2.0, -1.0]), CLASSES, multi_label=True, label=(0, 1))
    assert several["answer"] == "dark" and several["label"] == "light" and several["probability_dark"] == "0.8807971"
    assert named((0, 0), CLASSES) == "none" and named(UNKNOWN, CLASSES) == ""


def test_stopped_work_goes_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = tiny
    out, asked = tmp_path / "p.csv", ["predict", run, data, "--out", tmp_path / "p.csv", "--batch-size", 2]
    invoke("predict", run, data, "--out", tmp_path / "whole.csv", "--batch-size", 2)
    answers, calls = predict._answers, []

    def stops(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return answers(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_answers", stops)
    with pytest.raises(BaseException):  # noqa: B017
        invoke(*asked)
    assert not out.exists()
    monkeypatch.setattr(predict, "_answers", lambda *a: calls.append(a) or answers(*a))
    kept = len([path for path in (tmp_path / "p.csv.parts").iterdir() if path.name.isdigit()])
    assert kept >= 2
    refused = invoke(*asked[:2], data / "images", *asked[3:], code=1)
    assert "was begun with other settings (images" in refused and "--overwrite" in refused
    before = len(calls)
    told = invoke(*asked)
    assert f"; {4 * kept} were there" in told and len(calls) - before == 18 - 2 * kept
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes() and not (tmp_path / "p.csv.parts").exists()
    assert "exists; name another file, or replace it (--overwrite)" in invoke(*asked, code=1)
    invoke(*asked, "--overwrite")


def test_processes_share_the_work(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    invoke("predict", run, data, "--out", tmp_path / "one.csv", "--batch-size", 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "isnet"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words = [str(w) for w in (*command, "predict", run, data, "--out", tmp_path / "two.csv", "--batch-size", 2)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "in 2 processes" in done.stdout and done.stdout.count("Device: ") == 1
    one, two = rows(tmp_path / "one.csv"), rows(tmp_path / "two.csv")
    assert [(r["image"], r["answer"]) for r in one] == [(r["image"], r["answer"]) for r in two]


def test_several_labels_and_dicom(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    (tmp_path / "images").mkdir()
    lines = ["image,=wet,big"]
    for number in range(16):
        Image.fromarray(np.tri(16, dtype=np.uint8) * 200 + number).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"images/{number}.png,{number % 2},{number // 8}")
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    options = ["--arch", "test_isnet_own_images:Tiny", "--channels", 1, "--size", 16, "--epochs", 1, "--batch-size", 4]
    invoke("train", tmp_path / "run", "--data", tmp_path / "set.csv", *options, "--quiet")
    scan = get_testdata_file("CT_small.dcm")
    assert pydicom.dcmread(scan).Modality == "CT"
    invoke("predict", tmp_path / "run", tmp_path / "set.csv", scan, "--out", tmp_path / "p.csv")
    found = rows(tmp_path / "p.csv")
    assert (
        len(found) == 17 and found[1]["label"] == "'=wet" and found[0]["label"] == "none" and found[16]["label"] == ""
    )
    for row in found:
        chances = {name: float(row[f"probability_{name}"]) for name in ("=wet", "big")}
        likely = ", ".join(name for name in chances if chances[name] > 0.5) or "none"
        assert row["answer"].removeprefix("'") == likely and row["background_share"] == ""
    assert "Picture" in invoke("explain", tmp_path / "run", scan, "--target", "big", "--out", tmp_path / "x.png")


def test_explaining_images(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    test = data / "images" / "test"
    out = tmp_path / "one.svg"
    told = invoke("explain", run, test / "dark" / "0.png", "--target", "light", "--out", out)
    assert "explained: light; no mask or no relevance. Picture:" in told and "<svg" in out.read_text()
    told = invoke("explain", run, test / "dark", "--out", tmp_path / "many", "--target", "dark")
    assert len(list((tmp_path / "many").glob("*.png"))) == 6
    assert all((tmp_path / "many" / row["picture"]).is_file() for row in rows(tmp_path / "many" / "explanations.csv"))
    for arguments, text in (
        ([test / "dark", "--out", out], "--out: 6 images need a folder"),
        (
            [test / "dark" / "0.png", "--target", "drak"],
            "--target: expected the name of a class, one of dark, light, got 'drak'",
        ),
        ([data, "--split", "tset"], "--split: expected one of the images' splits, test, train, got 'tset'"),
        ([data, "--data", data], "--data: the images are named already"),
        (["--out", tmp_path / "x.gif"], "--out: expected a picture"),
        ([test / "dark" / "0.png", "--out", tmp_path / "x.gif"], "--out: expected a picture"),
    ):
        assert text in invoke("explain", run, *arguments, code=1)


def test_other_data(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    other = tmp_path / "clinic"
    shutil.copytree(data / "images" / "test", other)
    scores = (run / "evaluation.json").read_text()
    told = invoke("evaluate", run, "--data", other, "--resamples", 0, "--no-sensitivity")
    assert "clinic test" in told and (run / "evaluation.json").read_text() == scores
    assert len(rows(next(run.glob("evaluations/clinic-*/predictions-clinic.csv")))) == 12
    told = invoke(
        "evaluate", run, "--data", other, "--masks", data / "masks" / "test", "--resamples", 0, "--no-sensitivity"
    )
    assert "12 of 12" not in told
    assert "clinic test: accuracy" in invoke("compare", run, run, "--data", other, "--resamples", 5)
    invoke("report", run, "--data", other, "--out", tmp_path / "r.html")
    assert "Picture" in invoke("explain", run, "--data", other, "--index", 3, "--out", tmp_path / "x.png")
    (other / "dark").rename(other / "gloomy")
    refused = invoke("evaluate", run, "--data", other, code=1)
    assert "classes that the run does not have: gloomy; the run knows dark, light" in refused
    shutil.rmtree(other / "gloomy")  # a class may be missing
    assert "clinic test" in invoke("evaluate", run, "--data", other, "--resamples", 0, "--no-sensitivity")
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    invoke("evaluate", run, "--data", moved, "--resamples", 0, "--no-sensitivity")
    assert json.loads((run / "evaluation.json").read_text())["accuracy"].keys() == {"test"}
    assert not list(run.glob("evaluations/moved*"))
