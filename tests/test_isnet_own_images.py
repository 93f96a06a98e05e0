"""isnet train, evaluate, compare, explain, report and data check on the user's own images, through the command line."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import SIDE, squares
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from isnet import ISNet, cli
from isnet.config import ImagesConfig, RunConfig
from isnet.data import DataError, Facts, MaskedImages, MaskError, Problem
from isnet.runs import Run, gallery, load_config, load_run
from isnet.runs import data as run_data
from isnet.training import validation
from isnet.training.distributed import World
from isnet.variants import VARIANTS

runner = CliRunner()


class Tiny(nn.Module):
    """A small network with a named hidden layer."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def bright(image: Tensor) -> Tensor:
    return (image > 0.4).float()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bright or dark square in the middle tells the class; so does, in training, the corner."""
    return squares(tmp_path / "set")


ARCH = ["--arch", f"{__name__}:Tiny", "--channels", "1", "--size", str(SIDE)]
SHORT = ["--epochs", "1", "--batch-size", "8", *ARCH, "--variant", "standard"]
TUNED = [*SHORT, "--tune", "1"]


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def test_from_images_to_report(folder: Path, tmp_path: Path) -> None:
    guarded, plain = tmp_path / "guarded", tmp_path / "plain"
    printed = run("train", guarded, "--data", folder, *TUNED, "--variant", "selective", "--augment", "flip=0.5")
    assert "| selective |" in printed and "test test" in printed
    config = load_config(guarded)
    assert config.data.classes == ("dark", "light") and config.tuning_epochs == 1 and config.schedule.monitor == "loss"
    ranges = json.loads((guarded / "ranges.json").read_text())
    assert 0 < ranges["input"]["c1"][0] < ranges["input"]["c2"][0]
    kept = json.loads((guarded / "evaluation.json").read_text())["kept"]
    assert (guarded / "best.safetensors").exists() == (kept["score"] is not None) and kept["why"] in printed

    run("train", plain, "--data", folder, *SHORT)
    assert not (plain / "ranges.json").exists()
    table = run("evaluate", guarded, plain, "--resamples", "20")
    assert "| swapped |" in table and "| macro F1 |" in table and " to " in table
    scores = json.loads((guarded / "evaluation.json").read_text())
    assert set(scores["sensitivity"]["test"]) == {"removed", "swapped"}
    assert 0 <= scores["sensitivity"]["test"]["swapped"]["blind_spot"]["score"] <= 1 and "blind spot" in table
    assert "McNemar" in run("compare", plain, guarded, "--resamples", "20")
    told = run("explain", guarded, "--index", "7", "--out", tmp_path / "one.png")
    assert "image 7: light, answered" in told and (tmp_path / "one.png").stat().st_size > 1000
    run("report", plain, guarded, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "AUC" in page and "data:image/png" in page and "mark of" not in page


@pytest.mark.parametrize("layers", [[], ["first"]], ids=["input", "deep supervision"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_trains(folder: Path, tmp_path: Path, variant: str, layers: list[str]) -> None:
    chosen = [argument for layer in layers for argument in ("--layer", layer)]
    run("train", tmp_path / "run", "--data", folder, *TUNED, "--variant", variant, *chosen)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["epoch"] == 1
    assert set(json.loads((tmp_path / "run" / "ranges.json").read_text())) == {"input", *layers}
    before = Tiny()
    torch.manual_seed(0)
    assert not torch.equal(load_run(tmp_path / "run").model.first[0].weight, before.first[0].weight)


def test_the_layer_form_is_measured_and_validated_by(folder: Path, tmp_path: Path) -> None:
    found = {}
    for form in ("flex", "layerwise"):
        path = tmp_path / form
        run("train", path, "--data", folder, *SHORT, "--variant", "original", "--eps", "0.5", "--form", form)
        assert load_config(path).network.form == form
        found[form] = json.loads((path / "ranges.json").read_text())["input"]["c1"]
    assert found["flex"] != found["layerwise"]
    assert validation._explained(Tiny(), ISNet(Tiny(), form="layerwise")).form == "layerwise"


GUARDED = tuple(VARIANTS)


@pytest.mark.parametrize(
    ("variant", "layers"),
    [*((variant, []) for variant in ("standard", *GUARDED)), *((variant, ["first"]) for variant in GUARDED)],
    ids=str,
)
def test_several_labels_per_image(folder: Path, tmp_path: Path, variant: str, layers: list[str]) -> None:
    rows = []
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            for path in sorted((folder / "images" / split / name).iterdir()):
                mask = Path(str(path).replace("/images/", "/masks/"))
                rows.append(
                    {
                        "image": path,
                        "mask": mask,
                        "light": label,
                        "dark": 1 - label,
                        "source": f"H{len(rows) % 2}",
                        "split": split,
                    }
                )
    with (tmp_path / "set.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run(
        "train",
        tmp_path / "run",
        "--data",
        tmp_path / "set.csv",
        "--label",
        "light",
        "--label",
        "dark",
        *(SHORT if variant == "standard" else TUNED),
        "--variant",
        variant,
        *(argument for layer in layers for argument in ("--layer", layer)),
    )
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(scores["scores"]["test"]) == {"", "H0", "H1"}
    if variant != "standard":
        assert set(json.loads((tmp_path / "run" / "ranges.json").read_text())) == {"input", *layers}
    assert load_config(tmp_path / "run").data.multi_label
    if variant == "standard":
        told = run("explain", tmp_path / "run", "--out", tmp_path / "one.png")
        assert re.search(r"image 0: dark, answered (none|light|dark|light, dark); explained: (light|dark);", told)
        run("report", tmp_path / "run", "--out", tmp_path / "report.html")
        assert "heatmaps of the label with the highest logit" in (tmp_path / "report.html").read_text()


def test_answers_of_several_labels_are_right_if_all_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Linear(4, 2)
            nn.init.zeros_(self.flat.weight)
            self.flat.bias = nn.Parameter(torch.tensor([2.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(x.flatten(1))

    data: Any = TensorDataset(torch.rand(3, 1, 2, 2), torch.eye(3, 2), torch.eye(2).expand(3, 1, 2, 2))
    data.tensors[1][2] = 1
    data.labels = data.tensors[1]
    captions: dict[str, list[str]] = {}
    monkeypatch.setattr(gallery, "gallery_figure", lambda *given, **_: captions.update(given[3]))
    config = RunConfig(data=ImagesConfig("x", classes=("light", "dark"), multi_label=True))
    gallery.gallery([Run(tmp_path, config, Fixed())], data)
    assert sorted(text.partition(", bg")[0] for text in captions["standard"]) == [
        "✓ says light, dark",
        "✗ says light, dark",
        "✗ says light, dark",
    ]
    assert gallery.answer_text(torch.tensor([-1.0, -2.0]), torch.zeros(2), ("light", "dark")) == "none"


def test_segmenter_normalisation_and_tuning_alone(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "masks").rglob("*.png"):
        path.unlink()
    options = ["--segmenter", f"{__name__}:bright", "--normalize", "0.5/0.2", *TUNED, "--variant", "stochastic"]
    printed = run("tune", tmp_path / "run", "--data", folder, *options)
    assert '"c1"' in printed and not (tmp_path / "run" / "last.safetensors").exists()
    assert load_config(tmp_path / "run").data.pixel_range == ((-2.5,), (2.5,))
    before = (tmp_path / "run" / "ranges.json").read_text()
    run("train", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "ranges.json").read_text() == before
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_data_check(folder: Path) -> None:
    assert "36 of 36 images can be used" in run("data", "check", folder, "--size", SIDE)
    (folder / "masks" / "train" / "dark" / "3.png").unlink()
    (folder / "images" / "test" / "light" / "2.png").write_bytes(b"no picture")
    printed = run("data", "check", folder, "--size", SIDE, code=1)
    assert "34 of 36 images can be used" in printed
    assert "unusable-masks: 1 mask" in printed and "dark/3.png: no mask" in printed
    assert "unusable-images: 1 image" in printed and "light/2.png: cannot be read" in printed


def test_data_check_looks_at_the_whole_set(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "images" / "train" / "light")
    printed = run("data", "check", folder, "--size", SIDE, code=1)
    assert "error class-not-in-training: no training image is of the class light." in printed
    image = folder / "images" / "train" / "dark"
    rows = "".join(f"{image}/{n}.png,{folder}/masks/train/dark/0.png,{n},p1,{n}\n" for n in "01")
    (tmp_path / "set.csv").write_text(f"image,mask,label,group,age\n{rows}")
    assert "note unread-columns: columns that are not read: 'age'" in run(
        "data", "check", tmp_path / "set.csv", "--size", SIDE
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "0x3"], "--size: expected"),
        (["--normalize", "1,2/3"], "normalize: expected 1 means"),
        (["--augment", "tilt=3"], "augment: expected flip"),
        (["--segmenter", "nowhere:x"], "segmenter: nowhere:x: no module nowhere in the current folder"),
        (["--segmenter", "builtins:memoryview"], "builtins:memoryview: code of Python's standard library"),
        (["--segmenter", "string:digits"], "segmenter: string:digits: code of Python's standard library"),
        (["--augment", "flip=yes"], "flip: expected a number in [0, 1], got 'yes'"),
        (["--device", "cuda:99"], "CUDA devices that PyTorch finds, got cuda:99"),
        (["--layer", "firts"], "near matches: first"),
        (["--c1", "0.5"], "--c1, --c2: give both ends of the range or neither, got 0.5 and None"),
        (["--c1", "0.5", "--c2", "1"], "--tune: to be used with an ISNet whose C1 and C2 are measured"),
        (["--variant", "standard", "--p", "0.9", "--decay", "0.5"], "--p, --decay: to be used with an ISNet"),
        (["--validation", "0"], "monitor: needs validation images"),
    ],
)
def test_faulty_options(folder: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    result = runner.invoke(
        cli.app, ["train", str(tmp_path / "run"), "--data", str(folder), *TUNED, "--variant", "selective", *arguments]
    )
    assert text in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_bad_mask_stops_before_training_with_its_name(folder: Path, tmp_path: Path) -> None:
    (folder / "masks" / "train" / "dark" / "3.png").unlink()
    options = ["--data", folder, *TUNED, "--variant", "selective"]
    assert "dark/3.png: no mask" in failure("train", tmp_path / "run", *options)
    run("train", tmp_path / "skipped", *options, "--mask-policy", "skip")
    # What only the last minute would have met.
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / "masks" / "test" / "light" / "1.png")
    (folder / "images" / "test" / "dark" / "2.png").write_bytes(b"no picture")
    for command in ("train", "tune"):
        text = failure(command, tmp_path / "run", *options, "--mask-policy", "full")
        assert "dark/2.png: cannot be read" in text
    assert "test/light/1.png: no foreground" in failure("train", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_processes_share_the_look_at_all_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Second(World):
        def gather(self, value: Any) -> list[Any]:
            return [[Facts(0, Problem(0, "image", "what the first one found"))], value]

    def spy(images: MaskedImages, progress: Any, rows: Any, workers: Any) -> list[Facts]:
        read.extend(rows)
        return [Facts(5, Problem(5, "mask", "what this one found"))]

    monkeypatch.setattr(run_data, "examine", spy)
    monkeypatch.setattr(run_data, "current_world", lambda: Second(1, 2))
    config = run_data.with_classes(ImagesConfig(str(folder), size=(SIDE, SIDE), channels=1))
    with pytest.raises(DataError, match="2 of 36 images cannot be used: what the first one found; what this one found"):
        run_data.load_data(config, check=True)
    assert read == list(range(1, 36, 2))


def failure(*arguments: object) -> str:
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return str(result.exception)


@pytest.mark.parametrize("having", [0, 2], ids=["none", "some"])
def test_test_images_need_no_masks(folder: Path, tmp_path: Path, having: int) -> None:
    for path in (folder / "masks" / "test").rglob("*.png"):
        if int(path.stem) >= having:
            path.unlink()
    missing = 12 - 2 * having
    assert f"note test-masks-missing: {missing} test images" in run("data", "check", folder, "--size", SIDE)
    printed = run("train", tmp_path / "run", "--data", folder, *TUNED, "--variant", "selective")
    assert f"test test: {missing} of 12 images have no mask" in printed
    printed = run("evaluate", tmp_path / "run", "--resamples", "5")
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert scores["accuracy"].keys() == {"test"} and scores["masks"]["test"]["looked_at"] == 2 * having
    assert scores["background_attention"].keys() == scores["sensitivity"].keys() == ({"test"} if having else set())
    headline = next(line for line in printed.splitlines() if line.startswith("| selective | test |"))
    assert headline.endswith(" | - | - |") == (not having)
    told = run("explain", tmp_path / "run", "--index", "3", "--out", tmp_path / "one.png")
    assert "no mask" in told
    run("report", tmp_path / "run", "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"on {2 * having} images of the test test" in page and "have no mask" in page


def test_a_standard_run_needs_no_masks(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "masks").rglob("*.png"):
        path.unlink()
    assert "no mask" in run("data", "check", folder, "--size", SIDE, code=1)
    printed = run("train", tmp_path / "run", "--data", folder, *SHORT, "--augment", "flip=0.5")
    assert "| standard |" in printed
    assert "no mask" in failure("train", tmp_path / "warm", "--data", folder, *SHORT, "--warmup", "1")


def test_validation_images_need_masks_where_their_heatmaps_count(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "test").rename(folder / "images" / "validation")
    options = ["--data", folder, *TUNED, "--variant", "selective"]
    assert "validation/dark/0.png: no mask" in failure("train", tmp_path / "run", *options)
    run("train", tmp_path / "run", *options, "--best-by", "accuracy")


def test_evaluation_takes_no_more_images_at_a_time_than_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--accumulate", "2")
    sizes: list[int] = []
    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, x: (sizes.append(len(x)), forward(self, x))[1])
    run("evaluate", tmp_path / "run", "--resamples", "0")
    assert max(sizes) == 4
    assert sizes.count(4) == 3 * (
        1 + 2 + 1 + 4 + 1
    )  # 12 images: answers, two changes, heatmaps, two of each blind spot, and the table of answers


def test_compare_needs_the_same_images(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    for name, data in (("a", folder), ("b", tmp_path / "copy")):
        run("train", tmp_path / name, "--data", data, *SHORT)
    assert "do not share the test test: their images are not the same" in failure(
        "compare", tmp_path / "a", tmp_path / "b"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run("train", tmp_path / "c", "--data", "set", *SHORT, "--size", "20")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert "McNemar" in run("compare", tmp_path / "a", tmp_path / "c", "--resamples", "5")


def test_reports_on_runs_with_different_tests(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "images" / "test").rename(tmp_path / "copy" / "images" / "elsewhere")
    for name, data in (("a", folder), ("b", tmp_path / "copy")):
        run("train", tmp_path / name, "--data", data, *SHORT, "--name", name)
    printed = run("evaluate", tmp_path / "a", tmp_path / "b", "--resamples", "0", "--no-sensitivity")
    assert re.search(r"\| a \| test \| [\d.]+ \| ", printed) and re.search(r"\| b \| elsewhere \| [\d.]+ \| ", printed)
    run("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "report.html")
    run("train", tmp_path / "c", "--data", folder, *SHORT, "--size", "20")
    assert "report them apart" in failure("report", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "x.html")


def test_a_run_without_anything_to_score(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "images" / "test")
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--validation", "0", "--best-by", "none")
    for command in (["evaluate"], ["report"], ["explain"], ["compare", tmp_path / "run"]):
        assert "neither a test nor a validation split" in failure(*command, tmp_path / "run")


class Blank(Tiny):
    """No weights, and so no relevance anywhere."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__(in_channels, num_classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def test_networks_without_relevance_are_scored(folder: Path, tmp_path: Path) -> None:
    printed = run("train", tmp_path / "run", "--data", folder, *SHORT, "--arch", f"{__name__}:Blank")
    assert " | - |" in printed
    assert "| 0.0 % |\n" in run("evaluate", tmp_path / "run", "--resamples", "5")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["background_attention"] == {}
    assert "no relevance" in run("explain", tmp_path / "run", "--out", tmp_path / "one.png")
    run("report", tmp_path / "run", "--out", tmp_path / "report.html")


def test_what_the_mask_policy_leaves_out_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "masks" / "train" / "dark" / "3.png").unlink()
    (folder / "masks" / "test" / "light" / "1.png").unlink()
    (folder / "images" / "test" / "dark" / "2.png").write_bytes(b"no picture")
    options = ["--data", folder, *SHORT, "--variant", "selective", "--c1", "1", "--c2", "25", "--mask-policy", "skip"]
    printed = " ".join(run("train", tmp_path / "run", *options).split())
    assert re.search(
        r"Left out \(--mask-policy skip\): 2 images: \S+/test/dark/2\.png: cannot .*; \S+/train/dark/3\.png: no",
        printed,
    )
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [Path(text.partition(":")[0]).name for text in scores["dropped"]] == ["2.png", "3.png"]
    assert scores["masks"]["test"] == {"images": 11, "missing": 1, "looked_at": 10}


def test_a_standard_run_that_skips_is_scored_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "masks")
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--mask-policy", "skip")
    assert "12 of 12 images have no mask" in run("evaluate", tmp_path / "run", "--resamples", "0")


def test_whole_images_as_foreground_tell_nothing_of_the_background(folder: Path, tmp_path: Path) -> None:
    for name in ("dark/0", "light/1"):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / "masks" / "test" / f"{name}.png")
    (folder / "masks" / "test" / "light" / "4.png").unlink()
    printed = run("train", tmp_path / "run", "--data", folder, *SHORT, "--mask-policy", "full")
    assert "3 of 12 images have no mask, or none of use" in printed
    run("evaluate", tmp_path / "run", "--resamples", "0")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["masks"]["test"]["looked_at"] == 9
    assert "no mask or no relevance" in run("explain", tmp_path / "run", "--out", tmp_path / "one.png")


def test_errors_of_loading_processes_are_one_line(folder: Path) -> None:
    (folder / "masks" / "train" / "dark" / "0.png").unlink()
    config = run_data.with_classes(ImagesConfig(str(folder), size=(SIDE, SIDE), channels=1, validation=0.0))
    train = run_data.load_data(config).train
    with pytest.raises(MaskError) as caught:
        list(DataLoader(train, num_workers=1))
    assert "Traceback" in str(caught.value)
    assert re.fullmatch(r"\S+dark/0\.png: no mask", cli._told(caught.value))


def test_changed_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    run("train", tmp_path / "run", "--data", folder, *SHORT)
    (folder / "images" / "test" / "light").rename(folder / "images" / "test" / "bright")
    result = runner.invoke(cli.app, ["evaluate", str(tmp_path / "run")])
    assert "the run was made with the classes" in str(result.exception)


def test_torchrun_trains_what_one_process_trains(folder: Path, tmp_path: Path) -> None:
    options = ["--data", folder, *TUNED, "--variant", "selective", "--precision", "float32", "--clip-norm", "0"]
    run("train", tmp_path / "one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "isnet"]
    # With the caller's paths, so that the processes import the code under test.
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words = [str(word) for word in (*command, "train", tmp_path / "many", *options)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Run: ") == 1
    one, many = (load_run(tmp_path / name).model.state_dict() for name in ("one", "many"))
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-4, atol=1e-5)
