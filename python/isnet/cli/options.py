"""From command-line options to the settings of a run. Options left out are None here and keep their default, or the resumed run's value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from isnet.run_config import DataConfig, HeatmapConfig, ImagesConfig, RunConfig
from isnet.train_config import TrainConfig

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]


def _device(name: str) -> str:
    """Refuses GPUs that this PyTorch does not find."""
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device: expected one of the {torch.cuda.device_count()} CUDA devices that PyTorch finds, got {name}"
        )
    return name


Device = Annotated[str, typer.Option(callback=_device, help="Where to compute: cpu, cuda, cuda:1, ...")]

_NET, _OWN, _MNIST, _TRAIN, _LOSS, _OUT = "Network", "Own images", "Biased MNIST", "Training", "Heatmap loss", "Files"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TUNING_EPOCHS = 2


class Options(NamedTuple):
    """The input of train and tune."""

    folder: Path
    config: RunConfig
    device: str
    resume: bool


# The options that torchrun's parser mistakes for abbreviations of its own (wherever they stand) have a second name.
def _option(panel: str, text: str, default: str | None = None, **more: Any) -> Any:
    names = more.pop("names", ())
    return typer.Option(*names, help=text, show_default=default or False, rich_help_panel=panel, **more)


def configure(
    run: RunFolder,
    variant: Annotated[
        str | None,
        _option(
            _NET, "standard, or an ISNet: selective, stochastic, original, dual, gradient_times_input.", "standard"
        ),
    ] = None,
    name: Annotated[str | None, _option(_NET, "What to call the run in tables.", "the variant")] = None,
    arch: Annotated[
        str | None,
        _option(
            _NET,
            "monai:NAME, torchvision:NAME, timm:NAME or package.module:CALLABLE.",
            "monai:DenseNet121; a narrow monai:ResNet for biased MNIST",
        ),
    ] = None,
    arch_arg: Annotated[
        list[str] | None,
        _option(_NET, "Argument of the architecture (value in JSON or text); repeatable.", metavar="KEY=VALUE"),
    ] = None,
    data: Annotated[
        Path | None,
        _option(_OWN, "Image folder, .csv/.tsv/.parquet manifest or .tar shards; without it: biased MNIST."),
    ] = None,
    masks: Annotated[Path | None, _option(_OWN, "Folder of the masks, of the images' shape.", "DATA/masks")] = None,
    label: Annotated[list[str] | None, _option(_OWN, "Label column of a multi-label manifest; repeatable.")] = None,
    size: Annotated[str | None, _option(_OWN, "HEIGHTxWIDTH for the network.", "224x224")] = None,
    mask_policy: Annotated[str | None, _option(_OWN, "What an unusable mask does: error, skip, full.", "error")] = None,
    segmenter: Annotated[
        str | None, _option(_OWN, "package.module:callable that makes missing masks from images [C, H, W].")
    ] = None,
    resize: Annotated[str | None, _option(_OWN, "stretch, or pad to keep the aspect ratio.", "stretch")] = None,
    normalize: Annotated[
        str | None,
        _option(_OWN, "imagenet, or MEAN/STD with one number per channel (0.5,0.5,0.5/0.2,0.2,0.2).", "none"),
    ] = None,
    validation: Annotated[
        float | None, _option(_OWN, "Share of the training images, if there is no validation split.", "0.15")
    ] = None,
    augment: Annotated[
        list[str] | None,
        _option(
            _OWN,
            "flip (probability), rotate (degrees), shift (pixels), zoom or contrast (relative); repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    channels: Annotated[int | None, _option(_OWN, "1 or 3; of biased MNIST, too.", "3; 1 for biased MNIST")] = None,
    data_folder: Annotated[Path | None, _option(_MNIST, "Folder of the MNIST files.", "data/mnist")] = None,
    train_size: Annotated[int | None, _option(_MNIST, "Training digits.", "all")] = None,
    test_size: Annotated[int | None, _option(_MNIST, "Test digits.", "all")] = None,
    mark: Annotated[
        str | None, _option(_MNIST, "Background mark: place, texture or photo (scikit-image).", "place")
    ] = None,
    mask: Annotated[str | None, _option(_MNIST, "Foreground mask: box or digit.", "box")] = None,
    imprecise: Annotated[
        int | None, _option(_MNIST, "Pixels by which masks may be grown and moved, drawn for each.", "0")
    ] = None,
    ink: Annotated[float | None, _option(_MNIST, "Opacity of the digits' strokes.", "1")] = None,
    canvas: Annotated[int | None, _option(_MNIST, "Side of the images.", "40")] = None,
    shift: Annotated[int | None, _option(_MNIST, "Largest displacement of the digit.", "2")] = None,
    noise: Annotated[float | None, _option(_MNIST, "Amplitude of the noise on the canvas.", "0.1")] = None,
    epochs: Annotated[int | None, _option(_TRAIN, "Epochs after the warm-up.", "8")] = None,
    warmup: Annotated[int | None, _option(_TRAIN, "Epochs with the background replaced first.", "0")] = None,
    warmup_background: Annotated[
        str | None,
        _option(
            _TRAIN,
            "By what: noise (white), smooth (noise of several scales) or swap (another image's background).",
            "noise",
        ),
    ] = None,
    keep_replacing: Annotated[
        bool | None, _option(_TRAIN, "Replace the background after the warm-up, too; without one: throughout.", "off")
    ] = None,
    batch_size: Annotated[
        int | None, _option(_TRAIN, "Images per step, all processes together.", "16; 64 for biased MNIST")
    ] = None,
    accumulate: Annotated[
        int | None, _option(_TRAIN, "Parts of a batch, one after the other, to save memory.", "1")
    ] = None,
    optimizer: Annotated[str | None, _option(_TRAIN, "sgd or adamw.", "adamw")] = None,
    lr: Annotated[float | None, _option(_TRAIN, "Learning rate.", "0.0003; 0.002 for biased MNIST")] = None,
    lr_rampup: Annotated[float | None, _option(_TRAIN, "Epochs over which it rises from 0.", "0")] = None,
    lr_after_warmup: Annotated[float | None, _option(_TRAIN, "Factor on it after the warm-up.", "0.3")] = None,
    schedule: Annotated[str | None, _option(_TRAIN, "constant, cosine or step.", "constant")] = None,
    milestone: Annotated[
        list[int] | None, _option(_TRAIN, "Epoch at which the step schedule falls; repeatable.")
    ] = None,
    gamma: Annotated[float | None, _option(_TRAIN, "Factor on it at each milestone.", "0.1")] = None,
    momentum: Annotated[float | None, _option(_TRAIN, "Of sgd.", "0.9")] = None,
    weight_decay: Annotated[float | None, _option(_TRAIN, "Of either optimizer.", "0.01")] = None,
    clip_norm: Annotated[float | None, _option(_TRAIN, "Largest gradient norm, 0 = no limit.", "1")] = None,
    precision: Annotated[
        str | None, _option(_TRAIN, "float32, or autocast: bfloat16, float16 (GPU).", "float32")
    ] = None,
    ema: Annotated[
        float | None, _option(_TRAIN, "Decay of a moving average of the weights, which is then kept.", "none")
    ] = None,
    monitor: Annotated[
        str | None,
        _option(
            _TRAIN,
            "Validation score that chooses the checkpoint of own images: loss, classification, accuracy, none.",
            "loss",
            names=("--monitor", "--best-by"),
        ),
    ] = None,
    patience: Annotated[int | None, _option(_TRAIN, "Stop after so many epochs without a better one.", "never")] = None,
    sync_batch_norm: Annotated[
        bool | None, _option(_TRAIN, "Batch norm over the images of all processes (torchrun, GPUs).", "off")
    ] = None,
    channels_last: Annotated[
        bool | None, _option(_TRAIN, "Memory format.", "first", names=("--channels-last/--channels-first",))
    ] = None,
    deterministic: Annotated[bool | None, _option(_TRAIN, "Deterministic algorithms only.", "off")] = None,
    workers: Annotated[int | None, _option(_TRAIN, "Processes that load images.", "0")] = None,
    seed: Annotated[int | None, _option(_TRAIN, "Seed of data and training.", "0")] = None,
    p: Annotated[float | None, _option(_LOSS, "P, share of the heatmap loss.", "0.7", names=("--p",))] = None,
    p_ramp: Annotated[float | None, _option(_LOSS, "Epochs over which P rises from 0.", "0")] = None,
    p_schedule: Annotated[
        list[str] | None,
        _option(_LOSS, "P from that epoch after the warm-up on, 5=0.9 for example; repeatable.", metavar="EPOCH=P"),
    ] = None,
    balance: Annotated[
        str | None, _option(_LOSS, "fixed: P as set; auto: from the running means of both losses.", "fixed")
    ] = None,
    heatmap_every: Annotated[int | None, _option(_LOSS, "Heatmap loss on every K-th step, weighted K.", "1")] = None,
    layer: Annotated[
        list[str] | None,
        _option(_LOSS, "Module whose relevance is supervised, too (LRP deep supervision); repeatable."),
    ] = None,
    layer_decay: Annotated[float | None, _option(_LOSS, "GWRP decay over the supervised layers.", "0.8")] = None,
    eps: Annotated[float | None, _option(_LOSS, "Stabiliser of the epsilon rule.", "0.01")] = None,
    form: Annotated[
        str | None, _option(_LOSS, "Where it stands: flex (at each ReLU) or layerwise (at every layer).", "flex")
    ] = None,
    static: Annotated[
        bool | None,
        _option(_LOSS, "The model makes the same PyTorch calls in every step: its Python code runs only once.", "off"),
    ] = None,
    less_memory: Annotated[
        bool | None, _option(_LOSS, "Save less of a step for its backward pass and make it again there.", "off")
    ] = None,
    d: Annotated[
        float | None,
        _option(_LOSS, "GWRP decay of the heatmap loss.", "0.9", names=("--d", "--decay")),
    ] = None,
    e: Annotated[
        float | None,
        _option(_LOSS, "E, the background score that costs log 2.", "1", names=("--e", "--background-scale")),
    ] = None,
    c1: Annotated[
        float | None, _option(_LOSS, "Lower end of natural foreground relevance.", "measured; 1 for biased MNIST")
    ] = None,
    c2: Annotated[float | None, _option(_LOSS, "Upper end.", "measured; 25 for biased MNIST")] = None,
    tune: Annotated[
        int | None,
        _option(
            _LOSS,
            "Epochs of plain training from which C1 and C2 are measured first.",
            "2; 0 with --c1 and --c2, or for biased MNIST",
        ),
    ] = None,
    foreground: Annotated[
        str | None, _option(_LOSS, "Right side of the foreground loss: hybrid, L2 or L1.", "hybrid")
    ] = None,
    w_foreground: Annotated[float | None, _option(_LOSS, "Weight of the foreground loss.", "1")] = None,
    w_background: Annotated[float | None, _option(_LOSS, "Weight of the background loss.", "1")] = None,
    log_every: Annotated[int | None, _option(_OUT, "Steps between two lines of the log.", "20")] = None,
    save_every: Annotated[
        int | None, _option(_OUT, "Steps between two checkpoints within an epoch.", "only after epochs")
    ] = None,
    keep_last: Annotated[int | None, _option(_OUT, "Checkpoints of past epochs to keep.", "0")] = None,
    tensorboard: Annotated[bool | None, _option(_OUT, "Write the log for TensorBoard as well.", "off")] = None,
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option(help="Continue the run; options left out are taken from it.")] = False,
) -> Options:
    """The settings that the options ask for."""
    from isnet import runs
    from isnet.architectures import parse_arguments

    images = {"masks": masks, "label": label, "size": size, "mask_policy": mask_policy, "segmenter": segmenter, "resize": resize,
              "normalize": normalize, "validation": validation, "augment": augment}  # fmt: skip
    digits = {"data_folder": data_folder, "train_size": train_size, "test_size": test_size, "mark": mark, "mask": mask,
              "imprecise": imprecise, "ink": ink, "canvas": canvas, "shift": shift, "noise": noise}  # fmt: skip
    saved = runs.load_config(run) if resume and (run / runs.CONFIG_NAME).exists() else None
    if resume and saved is None and data is None and not _given(**digits):
        raise ValueError(
            f"--resume: {run} holds no run; to begin one there, name --data, or an option of biased MNIST (--data-folder)"
        )
    base = saved or (_own_images(data) if data is not None else RunConfig())
    own = isinstance(base.data, ImagesConfig)
    misplaced = _given(**(digits if own else images))
    if misplaced:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in misplaced)
        raise ValueError(f"{names}: only for {'biased MNIST, without --data' if own else 'own images, with --data'}")

    settings: DataConfig | ImagesConfig
    if isinstance(base.data, ImagesConfig):
        settings = _images(base.data, data, channels, seed, **images)
    else:
        folder = None if data_folder is None else str(data_folder)
        digits.pop("data_folder")
        settings = dataclasses.replace(base.data, **_given(folder=folder, channels=channels, seed=seed, **digits))

    arguments: dict[str, Any] | None = None
    if arch is not None:
        arguments = parse_arguments(arch_arg or [])
    elif arch_arg:
        arguments = {**base.arch_arguments, **parse_arguments(arch_arg)}
    heatmap = dataclasses.replace(
        base.heatmap,
        **_given(
            eps=eps,
            form=form,
            d=d,
            e=e,
            c1=c1,
            c2=c2,
            foreground=foreground,
            w_foreground=w_foreground,
            w_background=w_background,
            layers=tuple(layer) if layer else None,
            layer_decay=layer_decay,
            static=static,
            checkpoint=less_memory,
        ),
    )
    if heatmap.input_range is not None:
        heatmap = dataclasses.replace(heatmap, input_range=settings.pixel_range)
    unset: dict[str, Any] = {} if clip_norm is None else {"clip_norm": clip_norm or None}
    unset |= {} if monitor is None else {"monitor": None if monitor == "none" else monitor}
    train = dataclasses.replace(
        base.train,
        **_given(
            epochs=epochs, warmup=warmup, warmup_background=warmup_background, batch_size=batch_size, accumulate=accumulate,
            keep_replacing=keep_replacing, optimizer=optimizer, lr=lr, lr_rampup=lr_rampup, lr_after_warmup=lr_after_warmup,
            schedule=schedule, milestones=tuple(milestone) if milestone else None, gamma=gamma, momentum=momentum,
            weight_decay=weight_decay, precision=precision, ema=ema, patience=patience, channels_last=channels_last,
            sync_batch_norm=sync_batch_norm,
            deterministic=deterministic, workers=workers, seed=seed, p=p, p_ramp=p_ramp, balance=balance, heatmap_every=heatmap_every,
            p_schedule=_p_schedule(p_schedule) if p_schedule else None, log_every=log_every,
            save_every=save_every, keep_last=keep_last, tensorboard=tensorboard,
        ),
        **unset,
    )  # fmt: skip
    config = dataclasses.replace(
        base,
        **_given(variant=variant, name=name, arch=arch, arch_arguments=arguments),
        data=settings,
        heatmap=heatmap,
        train=train,
    )
    if config.variant != "standard":
        runs.build_criterion(config)  # checks its settings now, not after C1 and C2 have been measured
    if tune is None and saved is None:
        # One of them without the other is refused below.
        measured = own and config.variant != "standard" and c1 is None and c2 is None
        tune = _TUNING_EPOCHS if measured else 0
    config = dataclasses.replace(config, **_given(tune=tune))
    _require_use(
        config,
        _given(
            p=p, p_ramp=p_ramp, balance=balance, heatmap_every=heatmap_every, layer=layer,
            static=static, less_memory=less_memory, d=d, c1=c1, c2=c2, tune=tune or None, w_foreground=w_foreground,
            w_background=w_background, foreground=foreground, e=e, form=form, layer_decay=layer_decay, p_schedule=p_schedule or None,
            milestone=milestone, gamma=gamma, momentum=momentum,
            schedule_step=True if schedule == "step" else None, warmup_background=warmup_background, lr_after_warmup=lr_after_warmup,
        ),
    )  # fmt: skip
    return Options(run, config, device, resume)


def _require_use(config: RunConfig, given: dict[str, Any]) -> None:
    """Refuses options that have no effect with the others.

    Raises:
        ValueError: names them, and what they need.
    """
    train = config.train
    needs = (
        (
            ("p", "p_ramp", "balance", "heatmap_every", "layer", "static", "less_memory", "d", "c1", "c2",
             "tune", "w_foreground", "w_background", "foreground", "e", "form", "layer_decay", "p_schedule"),
            config.variant != "standard",
            "an ISNet (--variant selective, say); a standard network has no heatmap loss",
        ),
        (("c1",), "c2" in given, "--c2, the other end of the range"),
        (("c2",), "c1" in given, "--c1, the other end of the range"),
        (("c1", "c2"), not config.tune, "--tune 0: what is measured would take their place"),
        (("milestone", "gamma"), train.schedule == "step", "--schedule step"),
        (("momentum",), train.optimizer == "sgd", "--optimizer sgd"),
        (("schedule_step",), bool(train.milestones), "--milestone"),
        (("warmup_background",), bool(train.warmup or train.keep_replacing), "--warmup or --keep-replacing"),
        (("lr_after_warmup",), train.warmup > 0, "--warmup"),
    )  # fmt: skip
    for names, met, need in needs:
        idle = [f"--{name.replace('_', '-')}" for name in names if name in given]
        if idle and not met:
            raise ValueError(f"{', '.join(idle)}: to be used with {need}".replace("--schedule-step", "--schedule step"))


def _own_images(path: Path) -> RunConfig:
    return RunConfig(
        arch="monai:DenseNet121",
        arch_arguments={},
        data=ImagesConfig(str(path)),
        heatmap=HeatmapConfig(),
        train=TrainConfig(batch_size=16, lr=3e-4, monitor="loss"),
    )


def _images(
    base: ImagesConfig, data: Path | None, channels: int | None, seed: int | None, **options: Any
) -> ImagesConfig:
    from isnet.architectures import parse_arguments
    from isnet.run_data import with_classes

    strengths = parse_arguments(options["augment"] or [])
    unknown = set(strengths) - {"flip", "rotate", "shift", "zoom", "contrast"}
    if unknown:
        raise ValueError(f"--augment: expected flip, rotate, shift, zoom or contrast, got {', '.join(sorted(unknown))}")
    wanted = dataclasses.replace(
        base,
        **_given(
            path=None if data is None else str(data),
            masks=None if options["masks"] is None else str(options["masks"]),
            labels=None if options["label"] is None else tuple(options["label"]),
            size=None if options["size"] is None else _size(options["size"]),
            channels=channels,
            seed=seed,
            **{key: options[key] for key in ("mask_policy", "segmenter", "resize", "validation")},
        ),
        **strengths,
    )
    if options["normalize"] is not None:
        mean, std = _normalization(options["normalize"], wanted.channels)
        wanted = dataclasses.replace(wanted, mean=mean, std=std)
    return with_classes(wanted)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdigit() and int(side) for side in sides):
        raise ValueError(f"--size: expected HEIGHTxWIDTH or a side, got {text!r}")
    return int(sides[0]), int(sides[-1])


def _p_schedule(pairs: list[str]) -> tuple[tuple[float, float], ...]:
    try:
        return tuple(sorted((float(epoch), float(p)) for epoch, p in (pair.split("=") for pair in pairs)))
    except ValueError as error:
        raise ValueError(f"--p-schedule: expected EPOCH=P, got {' '.join(pairs)!r}") from error


def _normalization(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        parts = (
            _IMAGENET if text == "imagenet" else tuple(tuple(map(float, half.split(","))) for half in text.split("/"))
        )
        mean, std = parts
    except ValueError as error:
        raise ValueError(f"--normalize: expected imagenet or MEAN/STD, got {text!r}") from error
    if text == "imagenet" and channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"--normalize: expected {channels} means and positive deviations, got {text!r}")
    return mean, std


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
