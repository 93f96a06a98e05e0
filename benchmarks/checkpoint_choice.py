"""Which epoch should a run keep? Trains once, scores every epoch on validation and tests, and asks each rule which it would have kept.

``python -m benchmarks.checkpoint_choice`` trains what is missing of every experiment and method, writes all epochs' scores to
``epochs.json`` and prints the tables of docs/scores.md; ``--summarize docs/checkpoint_choice.json`` prints them from stored epochs.
Validation images are of the training's distribution: their backgrounds give the class away. The tests have other backgrounds, and so
tell whether the network that was kept follows them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.nn import Module
from torch.utils.data import Dataset

from isnet._files import write_json, write_text
from isnet.config import ImagesConfig, RunConfig
from isnet.config.groups import Monitor
from isnet.data import Example
from isnet.data.backgrounds import WarmupBackground
from isnet.experiments import trainings
from isnet.experiments.digits import DigitsConfig, digits_run, load_digits
from isnet.experiments.xray_images import MANIFEST, RenderConfig, images_folder, render_images
from isnet.loss import classification_loss
from isnet.runs import RunData, build_criterion, build_isnet, build_model, load_run_data, train_run
from isnet.runs.data import with_classes
from isnet.scoring.evaluation import background_attention, predict
from isnet.scoring.intervals import classification_scores
from isnet.scoring.sensitivity import OtherBackground
from isnet.training.checkpoints import load_checkpoint, load_model_state
from isnet.training.distributed import World
from isnet.training.validation import RULES as PRODUCT_RULES
from isnet.training.validation import losses

EXPERIMENTS = ("place", "photo", "texture", "xray")
_VALIDATION, _TEST, _ATTENTION = 300, 500, 150  # images


class Method(NamedTuple):
    """A variant, and whether its backgrounds are replaced in a warm-up or throughout."""

    variant: str
    warm: bool = True
    throughout: bool = False


METHODS: Mapping[str, Method] = {
    "standard": Method("standard", warm=False),
    "swapped backgrounds": Method("standard", throughout=True),
    "selective": Method("selective"),
    "stochastic": Method("stochastic"),
    "dual": Method("dual"),
    "selective from scratch": Method("selective", warm=False),
}


@dataclass(frozen=True)
class Choice:
    """The size of the comparison.

    Attributes:
        folder: Of runs and cells.
        mnist, xray, ct: Of the data.
        train, xray_train: Training images.
        warmup, epochs: Of each training; without a warm-up warmup + epochs are trained.
    """

    folder: str = "runs/checkpoint-choice"
    mnist: str = "data/mnist"
    xray: str = "data/xray-choice"
    ct: str = "data/chest-ct"
    train: int = 2000
    xray_train: int = 600
    warmup: int = 2
    epochs: int = 8


class Cell(NamedTuple):
    """One training."""

    experiment: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.experiment}-{self.method.replace(' ', '-')}-{self.seed}"


class Rows(Dataset[Example]):
    """Some rows of a set that has ``labels``."""

    def __init__(self, dataset: Dataset[Example], rows: range) -> None:
        self.dataset, self.rows = dataset, rows
        self.labels = cast(Any, dataset).labels[rows.start : rows.stop]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[self.rows[index]]


def settings(choice: Choice, cell: Cell) -> RunConfig:
    """The run of a cell: constant learning rate, every epoch's checkpoint kept."""
    method = METHODS[cell.method]
    total = choice.warmup + choice.epochs
    warmup = choice.warmup if method.warm else 0
    replaced: WarmupBackground = "swap"
    options: dict[str, Any] = {
        "variant": method.variant,
        "warmup": warmup,
        "epochs": total - warmup,
        "keep_replacing": method.throughout,
        "keep_last": total,
        "seed": cell.seed,
        "monitor": None,
    }
    if warmup or method.throughout:
        options["warmup_background"] = replaced
    if cell.experiment == "xray":
        render = rendering(choice)
        path = images_folder(render, cell.seed) / MANIFEST
        data = ImagesConfig(str(path), size=(64, 64), channels=1, augment={"flip": 0.5, "shift": 2.56})
        run = RunConfig(data=with_classes(data), network=trainings.NARROW_RESNET, name=cell.method)
        options |= {"batch_size": 32, "lr": 2e-3, "lr_rampup": 2.0}
        if method.variant != "standard":
            options |= {"p": 0.9 if method.variant == "dual" else 0.7, "tune": 1}
        return run.replaced(**options)
    digits = DigitsConfig(choice.mnist, choice.train + _VALIDATION, _TEST, mark=cast(Any, cell.experiment))
    if cell.experiment == "photo":
        digits = DigitsConfig(
            choice.mnist, choice.train + _VALIDATION, _TEST, mark="photo", mask="digit", imprecise=2, ink=0.6
        )
    return digits_run(digits, cell.method, batch_size=40, channels_last=True, static=True, **options)


def rendering(choice: Choice) -> RenderConfig:
    """The radiographs of the comparison."""
    return RenderConfig(choice.xray, choice.ct, choice.xray_train, 120, 100, pixels=112)


def data_of(choice: Choice, cell: Cell, run: RunConfig) -> tuple[RunData, Dataset[Example]]:
    """The data of a cell, and its validation images, which nothing is trained on."""
    if cell.experiment == "xray":
        data = load_run_data(run, progress=False)
        return data._replace(validation={}), data.validation["validation"]
    assert isinstance(run.data, DigitsConfig)
    digits = load_digits(run.data, seed=cell.seed, progress=False)
    count = choice.train
    validation = Rows(digits.train, range(count, count + _VALIDATION))
    return RunData(Rows(digits.train, range(count)), {}, digits.tests), validation


def train_cell(choice: Choice, cell: Cell) -> None:
    """Trains a cell and scores its epochs after the warm-up."""
    torch.set_num_threads(1)
    run, folder = settings(choice, cell), Path(choice.folder) / "runs" / cell.key
    data, validation = data_of(choice, cell, run)
    train_run(folder, run, data=data, resume=True, progress=False)
    model = build_model(run)
    schedule = run.schedule
    epochs = []
    for epoch in range(schedule.warmup + 1, schedule.warmup + schedule.epochs + 1):
        path = folder / f"epoch-{epoch:04d}.safetensors"
        load_model_state(model, load_checkpoint(path), path)
        epochs.append({"epoch": epoch, **scores_of(model.eval(), run, folder, data, validation)})
    labels = torch.stack([label for _, label, _ in (validation[row] for row in range(len(cast(Any, validation))))])
    shares = labels.bincount() / len(labels)
    prior = float(-(shares * shares.log()).nan_to_num().sum())
    write_json(path_of(choice, cell), {**cell._asdict(), "prior": prior, "epochs": epochs})
    for path in folder.glob("epoch-*.safetensors"):
        path.unlink()


def path_of(choice: Choice, cell: Cell) -> Path:
    return Path(choice.folder) / "cells" / f"{cell.key}.json"


def scores_of(
    model: Module, run: RunConfig, folder: Path, data: RunData, validation: Dataset[Example]
) -> dict[str, Any]:
    """What a rule may know of an epoch (``"validation"``), and what it is judged by (``"tests"``)."""
    isnet = build_isnet(run, model) if run.is_isnet else None
    criterion = build_criterion(run, folder) if run.is_isnet else None
    pixel_range = run.data.pixel_range
    found: dict[str, Any] = losses(
        model, validation, World(), isnet=isnet, criterion=criterion, p=run.loss.p if run.is_isnet else 0.0
    )
    found |= classified(model, validation)
    found["background"] = attention(model, validation, pixel_range)
    swapped = OtherBackground(validation, "swapped", pixel_range)
    before, after = (predict(model, images)[0].argmax(1) for images in (validation, swapped))
    found["swapped"] = {**classified(model, swapped), "changed": (before != after).double().mean().item()}
    tests = {name: classified(model, test) for name, test in data.tests.items()}
    last = list(data.tests)[-1]
    return {"validation": found, "tests": tests, "background": attention(model, data.tests[last], pixel_range)}


def classified(model: Module, images: Dataset[Example]) -> dict[str, float]:
    logits, labels = predict(model, images)
    found = {name: score.value for name, score in classification_scores(logits, labels, resamples=0).items()}
    recalls = [(logits.argmax(1)[labels == k] == k).double().mean().item() for k in labels.unique()]
    return {
        "accuracy": found["accuracy"],
        "balanced_accuracy": statistics.fmean(recalls),
        "auc": found["auc"],
        "cross_entropy": classification_loss(logits, labels).item(),
    }


def attention(model: Module, images: Dataset[Example], pixel_range: tuple[Any, Any]) -> float:
    return background_attention(model, images, input_range=pixel_range, max_images=_ATTENTION)


def _monitored(monitor: Monitor, scores: Mapping[str, Any]) -> float:
    """What the product's rule says of an epoch, larger is better."""
    rule = PRODUCT_RULES[monitor]
    value = rule.value(scores)
    assert value is not None
    return value if rule.rises else -value


# What chooses, from an epoch's validation scores: the largest wins. The first five are what --best-by offers.
RULES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    **{name: partial(_monitored, name) for name in PRODUCT_RULES},
    "AUC x relevance inside": lambda scores: scores["auc"] * (1 - scores["background"]),
    "loss, swapped backgrounds": lambda scores: -scores["swapped"]["cross_entropy"],
    "AUC, swapped backgrounds": lambda scores: scores["swapped"]["auc"],
    "balanced accuracy, swapped backgrounds": lambda scores: scores["swapped"]["balanced_accuracy"],
}
_UNGUARDED, _LAST, _BEST = "loss, unguarded", "last epoch", "best epoch in hindsight"


def chosen_epoch(rule: str, cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """The epoch of a scored cell that a rule keeps; the last where none may be kept."""
    epochs = cell["epochs"]
    if rule == _LAST:
        return epochs[-1]
    if rule == _BEST:
        return max(epochs, key=partial(judged, cell["experiment"]))
    if rule == _UNGUARDED:
        return min(epochs, key=lambda epoch: epoch["validation"]["loss"])
    allowed = [epoch for epoch in epochs if epoch["validation"]["classification"] < cell["prior"]]
    return max(allowed, key=lambda epoch: RULES[rule](epoch["validation"])) if allowed else epochs[-1]


def judged(experiment: str, epoch: Mapping[str, Any]) -> float:
    """What counts: balanced accuracy on digits with unknown or deceiving marks; AUC on radiographs, over all tests."""
    tests = epoch["tests"]
    if experiment == "xray":
        return statistics.fmean(scores["auc"] for scores in tests.values())
    return statistics.fmean(tests[name]["balanced_accuracy"] for name in ("unbiased", "deceiving"))


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Per rule the mean of what counts, in percent, over the cells of each experiment and over all, and of relevance in the background."""
    experiments = list(dict.fromkeys(cell["experiment"] for cell in cells))
    lines = [
        f"| rule | {' | '.join(experiments)} | all | all but plain training | relevance in the background |",
        f"| --- |{' ---: |' * (len(experiments) + 3)}",
    ]
    for rule in (*RULES, _UNGUARDED, _LAST, _BEST):
        kept = [(cell, chosen_epoch(rule, cell)) for cell in cells]
        scores = [(cell["experiment"], cell["method"], judged(cell["experiment"], epoch)) for cell, epoch in kept]
        parts = [[value for name, _, value in scores if name == experiment] for experiment in experiments]
        parts += [[value for _, _, value in scores], [value for _, method, value in scores if method != "standard"]]
        parts.append([epoch["background"] for _, epoch in kept])
        lines.append(f"| {rule} | {' | '.join(f'{100 * statistics.fmean(p):.1f}' if p else '-' for p in parts)} |")
    return "\n".join(lines) + "\n"


def wins(cells: Sequence[Mapping[str, Any]], rule: str, other: str) -> tuple[int, int]:
    """Cells in which one rule's epoch is better than another's, and worse."""
    differences = [
        judged(cell["experiment"], chosen_epoch(rule, cell)) - judged(cell["experiment"], chosen_epoch(other, cell))
        for cell in cells
    ]
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def all_cells(experiments: Sequence[str], methods: Sequence[str], seeds: int) -> list[Cell]:
    """Every training, seed by seed."""
    return [Cell(e, m, seed) for seed in range(seeds) for e in experiments for m in methods]


def summary(cells: Sequence[Mapping[str, Any]]) -> str:
    """The table, and how often each rule beats the default."""
    refused = sum(e["validation"]["classification"] >= cell["prior"] for cell in cells for e in cell["epochs"])
    lines = []
    for rule in RULES:
        if rule != "loss":
            better, worse = wins(cells, rule, "loss")
            lines.append(f"{rule} against loss: better in {better}, worse in {worse} of {len(cells)} trainings")
    epochs = sum(len(cell["epochs"]) for cell in cells)
    return (
        f"{table(cells)}\n"
        + "\n".join(lines)
        + f"\n{refused} of {epochs} epochs were no better than the class shares\n"
    )


def _rounded(value: Any) -> Any:
    """Numbers to four digits and without what no rule asks for, so that the file stays small."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        if "tests" in value:
            tests = {
                name: {key: one[key] for key in ("balanced_accuracy", "auc")} for name, one in value["tests"].items()
            }
            value = {**value, "tests": tests}
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="0 and up; a cell takes about half a minute of one core")
    parser.add_argument("--experiment", action="append", choices=EXPERIMENTS, help="only this one; repeatable")
    parser.add_argument("--method", action="append", choices=METHODS, help="only this one; repeatable")
    parser.add_argument("--out", default=Choice.folder)
    parser.add_argument("--mnist", default=Choice.mnist)
    parser.add_argument("--summarize", type=Path, help="only print the tables from this file of scored epochs")
    arguments = parser.parse_args()
    if arguments.summarize is not None:
        print(summary(json.loads(arguments.summarize.read_text())))
        return
    choice = Choice(folder=arguments.out, mnist=arguments.mnist)
    cells = all_cells(arguments.experiment or EXPERIMENTS, arguments.method or list(METHODS), arguments.seeds)
    for seed in dict.fromkeys(cell.seed for cell in cells if cell.experiment == "xray"):
        render_images(rendering(choice), seed, processes=1, progress=False)
    trainings.train_missing(
        train_cell, choice, cells, lambda cell: path_of(choice, cell).exists(), processes=1, progress=True
    )
    scored = [json.loads(path_of(choice, cell).read_text()) for cell in cells]
    write_text(Path(choice.folder) / "epochs.json", json.dumps(_rounded(scored)) + "\n")
    print(summary(scored))


if __name__ == "__main__":
    main()
