"""isnet train --teacher: a run that learns another run's heatmaps, resumed, evaluated, explained and exported like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import SIDE, squares
from test_isnet_own_images import SHORT, Tiny, run
from tiny_run import invoke
from torch import Tensor, nn

import isnet
from isnet.config import ImagesConfig, RunConfig, TrainConfig
from isnet.distillation import Distilled
from isnet.runs import load_run, settled, train_run
from isnet.runs.data import load_run_data, splits_with_masks
from isnet.runs.plan import plan_run
from isnet.training import validation
from isnet.training.distributed import World
from isnet.training.learner import Learner

TRUST = ["--trust", "test_isnet_own_images"]


class Wide(Tiny):
    """Of another width in its first layer."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__(in_channels, num_classes)
        self.first = nn.Sequential(nn.Conv2d(in_channels, 9, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(9, 8, 3, stride=2), nn.ReLU())


def with_mask(images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Another modality: the mask in place of the image."""
    return masks.expand_as(images)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(images, teacher): one epoch on replaced backgrounds."""
    root = tmp_path_factory.mktemp("taught")
    images = squares(root / "set")
    run("train", root / "teacher", "--data", images, *SHORT, "--keep-replacing", "--quiet")
    yield images, root / "teacher"


def config(taught: tuple[Path, Path], **options: Any) -> RunConfig:
    data = ImagesConfig(str(taught[0]), size=(SIDE, SIDE), channels=1)
    given = {"arch": "test_isnet_own_images:Tiny", "epochs": 2, "batch_size": 8, "teacher": str(taught[1]), **options}
    return settled(RunConfig(data=data).replaced(**given))


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_from_teacher_to_export(taught: tuple[Path, Path], tmp_path: Path) -> None:
    images, teacher = taught
    student = tmp_path / "student"
    told = run(
        "train", student, "--data", images, *SHORT, "--teacher", teacher, "--view", "zeros", "--eps-low", "-2", *TRUST
    )
    assert (
        f"Student: maps of {teacher}" in told and "| distilled |" in told and "masks" not in told.split("checking")[0]
    )
    entries = log(student)
    epoch = next(entry for entry in entries if entry["kind"] == "epoch")
    # Chosen by the matching loss of the biased validation images, which no label has a part in.
    assert epoch["score"] == epoch["validation"]["loss"] == epoch["validation"]["heatmap"] > 0
    assert epoch["validation"]["prior"] == 0 and epoch["best"]
    step = next(entry for entry in entries if entry["kind"] == "step")
    assert step["loss"] == step["heatmap"] > 0 and step["classification"] > 0

    found = load_run(student, trust="test_isnet_own_images")
    assert isinstance(found.model, Tiny) and found.config.distill.teacher == str(teacher)
    head = load_run(teacher, trust="test_isnet_own_images").model.head
    assert torch.equal(found.model.head.weight, head.weight) and torch.equal(found.model.head.bias, head.bias)
    assert found.config.title == "distilled" and "distilled" in invoke("evaluate", student, *TRUST, "--resamples", "5")
    invoke("explain", student, *TRUST, "--out", tmp_path / "one.png")
    invoke("report", student, *TRUST, "--out", tmp_path / "report.html")
    invoke("predict", student, images / "images" / "test", *TRUST, "--out", tmp_path / "answers.csv")
    invoke("export", student, *TRUST, "--out", tmp_path / "exported", "--format", "torchscript")
    card = next((tmp_path / "exported").glob("*.md")).read_text()
    assert "student: its maps are to equal those of a teacher" in card
    assert isnet.load(student, trust="test_isnet_own_images").classes == ("dark", "light")


@pytest.mark.parametrize("options", [{}, {"view": "noise", "accumulate": 2, "less_memory": True, "ema": 0.9}])
def test_a_resumed_student_is_the_one_that_never_stopped(
    options: dict[str, Any], taught: tuple[Path, Path], tmp_path: Path
) -> None:
    train_run(tmp_path / "whole", config(taught, **options), progress=False, trust="test_isnet_own_images")
    for epochs in (1, 2):
        settings = config(taught, **{**options, "epochs": epochs})
        train_run(tmp_path / "parts", settings, progress=False, resume=epochs == 2, trust="test_isnet_own_images")
    whole, parts = (
        load_run(tmp_path / name, trust="test_isnet_own_images").model.state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.parametrize("distill", ["maps", "logits", "features"])
def test_no_label_reaches_the_student(distill: str, taught: tuple[Path, Path]) -> None:
    """Steps on the same images with other labels are the same steps."""
    settings = config(taught, distill=distill)
    images = torch.rand(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    states = []
    for labels in (torch.zeros(8).long(), torch.ones(8).long()):
        torch.manual_seed(0)
        student, teacher = Tiny(), Tiny()
        distilled = Distilled(student, teacher, match=settings.distill.distill, generator=torch.Generator())
        learner = Learner(
            distilled, settings, World(), 2, criterion=None, classification_loss=nn.functional.cross_entropy,
            input_range=(0, 1), observer=None, run_dir=None,
        )  # fmt: skip
        for _ in range(2):
            losses = learner.take_step([(images, labels, torch.ones(8, 1, SIDE, SIDE))])
        assert losses.total == losses.heatmap != losses.classification
        states.append(student.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["first.0.weight"], Tiny().first[0].weight)


def test_validation_compares_with_the_teacher(taught: tuple[Path, Path]) -> None:
    """The teacher itself has no loss; the score is the same each time, whatever was drawn before."""
    data = load_run_data(config(taught))
    teacher = load_run(taught[1], trust="test_isnet_own_images").model
    distilled = Distilled(Tiny(), teacher, start="teacher", generator=torch.Generator())
    found = []
    for student in (distilled.student, Tiny(), distilled.student):
        for name in ("train", "eval"):
            getattr(distilled, name)()
            scores = validation.losses(student, data.validation["validation"], World(), distilled=distilled)
            assert scores["loss"] == scores["heatmap"]
            found.append(scores["loss"])
    assert found[0] == found[1] == found[4] == found[5] < 1e-4 < found[2] == found[3]


def test_masks_are_needed_for_views_of_the_foreground_alone(taught: tuple[Path, Path]) -> None:
    assert splits_with_masks(config(taught)) == ()
    assert splits_with_masks(config(taught, view="zeros")) == ("train", "validation")
    assert splits_with_masks(config(taught, view="swap", monitor=None)) == ("train",)
    assert splits_with_masks(config(taught, keep_replacing=True)) == ("train",)


def test_a_plan_counts_the_student_and_holds_the_teacher(taught: tuple[Path, Path]) -> None:
    settings = config(taught, head="free")
    data = load_run_data(settings)
    with_teacher = plan_run(settings, data, trust=("test_isnet_own_images",))
    alone = plan_run(config(taught, teacher=None, variant="standard"), data)
    assert with_teacher.parameters == alone.parameters and with_teacher.memory > alone.memory


def test_a_teacher_of_another_modality_needs_code_for_it(taught: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(taught, view_code="test_isnet_distill_runs:with_mask", epochs=1)
    train_run(tmp_path / "run", settings, progress=False)
    assert load_run(tmp_path / "run", trust=("test_isnet_own_images", "test_isnet_distill_runs")).model is not None
    with pytest.raises(ValueError, match="view_code names 'test_isnet_distill_runs:with_mask'"):
        load_run(tmp_path / "run", trust="test_isnet_own_images")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--teacher", "TEACHER", "--variant", "selective"], "teacher: a run has a teacher or a heatmap loss of its own; leave"),
        (["--teacher", "TEACHER", "--warmup", "1"], "warmup: a run with a teacher has no classification loss to warm up with"),
        (["--teacher", "TEACHER", "--p", "0.5"], "--p: to be used with an ISNet"),
        (["--teacher", "missing"], "missing is not a run: it has no config.json"),
        (["--teacher", "TEACHER", "--size", "20"], "was trained on other images (size (1, 16, 16) there, (1, 20, 20) here)"),
        (["--teacher", "TEACHER", "--normalize", "0.5/0.2"], "was trained on other images (range of the pixels"),
        (["--teacher", "TEACHER", "--match-layer", "frist"], "layers: the student has no module 'frist'; near matches: first"),
        (["--teacher", "TEACHER", "--match-layer", "auto", "--match-layer", "first"], "expected auto, none or names of modules"),
        (["--teacher", "TEACHER", "--distill", "features", "--match-layer", "none"], "features are compared at a layer"),
        (["--teacher", "TEACHER", "--eps-low", "1"], "--eps-low, --eps-high: expected eps_low <= eps_high"),
        (["--teacher", "TEACHER", "--distill", "logits", "--eps-low", "-3"], "--eps-low: to be used with a teacher"),
        (["--view", "zeros"], "--view: to be used with a teacher (--teacher RUN)"),
        (["--distill", "logits", "--variant", "selective"], "--distill: to be used with a teacher (--teacher RUN)"),
        (["--teacher", "TEACHER", "--arch", "test_isnet_distill_runs:Wide", "--begin-as", "teacher"], "start: the student cannot start"),
    ],
)  # fmt: skip
def test_refuses_in_one_line(more: list[str], text: str, taught: tuple[Path, Path], tmp_path: Path) -> None:
    short = [word for word in SHORT if word not in ("--variant", "standard")]
    given = [str(taught[1]) if word == "TEACHER" else word for word in more]
    told = invoke("train", tmp_path / "run", "--data", taught[0], *short, *TRUST, *given, code=1)
    assert text in told and "\n" not in told.strip()
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_teacher_whose_code_is_not_trusted_is_not_run(
    taught: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISNET_TRUST")
    arch = ["--arch", "test_isnet_distill_runs:Wide", "--channels", "1", "--size", SIDE]
    options = ["--data", taught[0], *arch, "--teacher", taught[1], "--epochs", "1", "--batch-size", "8"]
    told = invoke("train", tmp_path / "run", *options, code=1)
    assert "network.arch names 'test_isnet_own_images:Tiny'" in told and "--trust test_isnet_own_images:Tiny" in told
    invoke("train", tmp_path / "run", *options, "--trust", "test_isnet_own_images:Tiny", "--dry-run")


def test_settings_of_before_there_were_teachers_are_read() -> None:
    values = RunConfig(data=ImagesConfig("x")).to_json()
    del values["distill"]
    assert RunConfig.from_json(values).distill.teacher is None
    assert TrainConfig.of(lr=1.0).train.lr == 1.0


@pytest.mark.parametrize("distill", ["maps", "features"])
def test_ddp_gets_a_gradient_of_each_parameter(distill: str, taught: tuple[Path, Path], tmp_path: Path) -> None:
    """A map has none for the last bias, features have none for the whole head."""
    settings = config(taught, distill=distill, head="free")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        distilled = Distilled(Tiny(), Tiny(), head="free", match=settings.distill.distill, generator=torch.Generator())
        learner = Learner(
            distilled, settings, World(), 2, criterion=None, classification_loss=nn.functional.cross_entropy,
            input_range=(0, 1), observer=None, run_dir=None,
        )  # fmt: skip
        learner.shared = nn.parallel.DistributedDataParallel(distilled)
        part = (torch.rand(8, 1, SIDE, SIDE), torch.zeros(8).long(), torch.ones(8, 1, SIDE, SIDE))
        for _ in range(3):
            assert learner.take_step([part]).heatmap
    finally:
        torch.distributed.destroy_process_group()
