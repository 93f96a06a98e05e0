"""Experiment 2: chest radiographs out of distribution. Does a classifier survive another patient and another hospital's marks?

The reproducible set is semi-synthetic (:mod:`isnet.experiments.radiographs`), rendered once into a folder with manifests, which
``isnet train --data`` reads as well. The same trainings run on the user's own manifest.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from isnet._files import write_json, write_text
from isnet.config import ImagesConfig, RunConfig
from isnet.data.backgrounds import WARMUP_BACKGROUNDS, WarmupBackground
from isnet.experiments import trainings
from isnet.experiments.xray_images import MANIFEST, UNMARKED, RenderConfig, images_folder, render_images
from isnet.runs import branch_run, evaluate_run, load_evaluation, load_run, require_same_run, train_run
from isnet.runs.data import with_classes

_RESAMPLES = 200
_WARMUP = "warm-up"


@dataclass(frozen=True)
class XrayConfig(RenderConfig):
    """The size of the experiment.

    Attributes:
        folder: Where runs (``seed-N/METHOD``) and tables go.
        data: The user's own image folder, manifest or shards; None: the rendered images (:class:`RenderConfig`).
        size: Side of the network's images.
        warmup, epochs: Of each method that has a warm-up; all see warmup + epochs epochs.
        warmup_background: What replaces the background then, and throughout for the rival "background noise"; see
            :class:`isnet.config.ScheduleConfig`.
        batch_size, lr: Of the training.
        p, dual_p: P of the ISNets, the share of the heatmap loss, and Dual's: with 0.7 it follows the marks.
        heatmap_every: K of the ISNets.
        seeds: One rendering of the images and one training per method each; of ``data`` only the training differs.
        methods: Names to run; empty: all.
    """

    folder: str = "runs/xray"
    data: str | None = None
    size: int = 224
    warmup: int = 20
    epochs: int = 20
    warmup_background: WarmupBackground = "smooth"
    batch_size: int = 32
    lr: float = 2e-3
    p: float = 0.7
    dual_p: float = 0.9
    heatmap_every: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2:
            raise ValueError(f"size: expected at least 2, got {self.size}")
        trainings.require_known("warmup_background", [self.warmup_background], WARMUP_BACKGROUNDS)
        trainings.require_different("seeds", self.seeds)


PRESETS: Mapping[str, XrayConfig] = {
    "full": XrayConfig(),
    "quick": XrayConfig(
        folder="runs/xray-quick",
        images="data/xray-quick",
        train=1200,
        validation=120,
        test=200,
        pixels=112,
        size=64,
        warmup=12,
        epochs=10,
        seeds=(0,),
    ),
}


class Method(NamedTuple):
    """A way to train: variant, whether the background is noise at first or throughout, and whether on images without marks."""

    variant: str
    warm: bool = False
    noise: bool = False
    unmarked: bool = False


METHODS: Mapping[str, Method] = {
    "trained without marks": Method("standard", unmarked=True),
    "standard": Method("standard"),
    "control (warm-up, then standard)": Method("standard", warm=True),
    "background noise": Method("standard", warm=True, noise=True),
    "selective": Method("selective", warm=True),
    "stochastic": Method("stochastic", warm=True),
    "dual": Method("dual", warm=True),
}


class Job(NamedTuple):
    """One training: its method's name, or that of the shared warm-up, and its seed."""

    method: str
    seed: int


def run_experiment(config: XrayConfig, *, processes: int = 2, progress: bool = True) -> list[dict[str, Any]]:
    """Renders, trains and scores what is missing; writes ``table.md``, ``seeds.md`` (every seed by itself) and ``results.json``.

    Args:
        config: The experiment.
        processes: Trainings at a time, each with one thread.
        progress: Show progress bars.

    Returns:
        Per seed and method ``{"method", "seed", "tests": {split: {"auc": {value, low, high}, "background": share}}}``.

    Raises:
        DataError: the CTs or the user's images cannot be used.
        ValueError: unknown methods.
        CheckpointError: the folder holds runs with other settings.
    """
    methods = trainings.chosen(METHODS, config.methods)
    if config.data is None:
        for seed in config.seeds:
            render_images(config, seed, processes=processes, progress=progress)
    else:  # the user's training images are not available without marks
        methods = {name: method for name, method in methods.items() if not method.unmarked}
    wanted = [Job(name, seed) for seed in config.seeds for name in methods]
    missing = [job for job in wanted if not _finished(config, job)]
    warm = [job for job in missing if METHODS[job.method].warm]
    shared = [Job(_WARMUP, seed) for seed in dict.fromkeys(job.seed for job in warm)]
    alone = [job for job in missing if not METHODS[job.method].warm]
    # Methods with a warm-up continue from one that they share.
    for jobs in (shared + alone, warm):
        trainings.train_missing(
            train_method, config, jobs, lambda job: _finished(config, job), processes=processes, progress=progress
        )
    rows = [_row(config, job) for job in wanted]
    write_json(Path(config.folder) / "results.json", rows)
    write_text(Path(config.folder) / "table.md", table(rows))
    write_text(Path(config.folder) / "seeds.md", table_of_seeds(rows))
    return rows


def run_config(config: XrayConfig, job: Job) -> RunConfig:
    """The settings of a method's run, or of the warm-up that several share."""
    name, seed = job
    method = METHODS.get(name, Method("standard", warm=True))
    warmup = config.warmup if method.warm else 0
    path = Path(config.data or images_folder(config, seed) / (UNMARKED if method.unmarked else MANIFEST))
    data = ImagesConfig(
        str(path), size=(config.size, config.size), channels=1, augment={"flip": 0.5, "shift": 0.04 * config.size}
    )
    run = RunConfig(data=with_classes(data), network=trainings.NARROW_RESNET, name=name).replaced(
        variant=method.variant,
        epochs=0 if name == _WARMUP else config.warmup + config.epochs - warmup,
        warmup=warmup,
        warmup_background=config.warmup_background if warmup else "noise",  # another one leaves plain runs valid
        keep_replacing=method.noise,
        batch_size=config.batch_size,
        lr=config.lr,
        lr_rampup=2.0,
        lr_after_warmup=1.0,
        lr_schedule="cosine",
        monitor=None,
        seed=seed,
    )
    if not run.is_isnet:
        return run
    # Only where they matter: another P leaves the plain networks valid.
    p = config.dual_p if method.variant == "dual" else config.p
    return run.replaced(p=p, heatmap_every=config.heatmap_every, tune=1)


def train_method(config: XrayConfig, job: Job) -> None:
    """Trains one method and scores it, or trains the shared warm-up, which must be there before the methods that continue from it."""
    torch.set_num_threads(1)
    folder, settings = _folder(config, job), run_config(config, job)
    if job.method != _WARMUP and METHODS[job.method].warm:
        branch_run(folder, _folder(config, Job(_WARMUP, job.seed)))
    train_run(folder, settings, resume=True, progress=False)
    if job.method != _WARMUP:
        evaluate_run(load_run(folder), resamples=_RESAMPLES, sensitivity=False, progress=False)


def _finished(config: XrayConfig, job: Job) -> bool:
    """Whether a training has its scores.

    Raises:
        CheckpointError: those are of a run with other settings.
    """
    folder = _folder(config, job)
    if load_evaluation(folder) is None:  # the warm-up has none: it is resumed, which does nothing if it is complete
        return False
    require_same_run(folder, run_config(config, job))
    return True


def _folder(config: XrayConfig, job: Job) -> Path:
    name = job.method.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    return Path(config.folder) / f"seed-{job.seed}" / name


def _row(config: XrayConfig, job: Job) -> dict[str, Any]:
    found = load_evaluation(_folder(config, job))
    assert found is not None
    tests = {
        test: {"auc": scores[""]["auc"], "background": found["background_attention"].get(test)}
        for test, scores in found["scores"].items()
    }
    return {**job._asdict(), "tests": tests}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Area under the ROC curve per method and test, and the share of relevance in the background, in Markdown.

    Of several seeds mean ± standard deviation; of one the value with its interval.
    """
    if len({row["seed"] for row in rows}) == 1:
        return table_of_seeds(rows)
    lines = _head(rows, "method")
    for name in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == name]
        cells = [_spread([row["tests"][test]["auc"]["value"] for row in found], 3) for test in rows[0]["tests"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {_spread([_background(row) for row in found], 0)} % |")
    return "\n".join(lines) + "\n"


def table_of_seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    """As :func:`table`, each seed by itself, each value with its 95 % interval."""
    several = len({row["seed"] for row in rows}) > 1
    lines = _head(rows, "method, seed" if several else "method")
    for row in rows:
        name = f"{row['method']}, {row['seed']}" if several else row["method"]
        cells = []
        for scores in row["tests"].values():
            auc = scores["auc"]
            interval = "" if auc["low"] is None else f" [{auc['low']:.3f}, {auc['high']:.3f}]"
            cells.append("-" if auc["value"] is None else f"{auc['value']:.3f}{interval}")
        share = _background(row)
        lines.append(f"| {name} | {' | '.join(cells)} | {'-' if share is None else f'{share:.0f}'} % |")
    return "\n".join(lines) + "\n"


def _head(rows: Sequence[Mapping[str, Any]], first: str) -> list[str]:
    tests = list(rows[0]["tests"])
    return [
        f"| {first} | {' | '.join(tests)} | relevance outside the lungs |",
        f"| --- |{' ---: |' * (len(tests) + 1)}",
    ]


def _background(row: Mapping[str, Any]) -> float | None:
    """In per cent, mean of the tests; None if there is one without masks."""
    shares = [scores["background"] for scores in row["tests"].values()]
    return None if None in shares else 100 * statistics.fmean(shares)


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation; a dash where a test of a single class has no AUC."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{statistics.fmean(known):.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def preset(name: str, **changes: Any) -> XrayConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
