"""The options of a run, one frozen dataclass per group: each is stated here, a teacher's in :mod:`.distill`, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from isnet.config.option import Group, option
from isnet.config.texts import Channels, Epochs, Limit, Names, Pairs, Size, Steps, normalization
from isnet.data import MaskPolicy, Resize, pixel_range
from isnet.data.augmentation import check_strengths
from isnet.data.backgrounds import WarmupBackground
from isnet.data.mask_reading import MaskValues
from isnet.loggers import LOGGERS
from isnet.loss import Foreground
from isnet.variants import VARIANTS, Form

Precision = Literal["float32", "bfloat16", "float16"]
LRSchedule = Literal["constant", "cosine", "step"]
Monitor = Literal["loss", "classification", "accuracy", "auc", "balanced"]
Balance = Literal["fixed", "auto"]
STANDARD, AUTO = "standard", "auto"


@dataclass(frozen=True)
class ImagesConfig(Group):
    """Your own images.

    See :func:`isnet.data.read_table` and :class:`isnet.data.MaskedImages`.
    """

    path: str = option(
        "", "Image folder, .csv/.tsv/.parquet manifest or .tar shards.", names=("--data",), common=True, location=True
    )
    masks: str | None = option(
        None, "Folder of the masks, of the images' shape; DATA/masks if left out.", common=True, location=True
    )
    labels: Names = option((), "Label column of a multi-label manifest; repeatable.", names=("--label",), common=True)
    size: Size = option((224, 224), "HEIGHTxWIDTH of the images for the network.", metavar="HxW", common=True)
    channels: Channels = option(3, "Colour channels.", common=True)
    mask_policy: MaskPolicy = option("error", "The effect of an unusable mask.")
    foreground_values: Names = option(
        (),
        "Number (1), range (128-255) or colour (#ff0000) that is foreground in the masks; repeatable. If left out, each file tells.",
        metavar="VALUE",
    )
    void: int | None = option(
        None, "Number of the masks that stands for void, as 255 often does; it is background.", ge=0
    )
    resize_masks: bool = option(False, "Bring a mask of another size, but the same proportions, to its image's size.")
    segmenter: str | None = option(
        None, "package.module:callable that makes missing masks from images [C, H, W].", code=True
    )
    resize: Resize = option("stretch", "stretch, or pad to keep the aspect ratio.")
    normalize: str | None = option(None, "imagenet, or MEAN/STD with one number per channel, as 0.5/0.2.", common=True)
    validation: float = option(0.15, "Share of the training images, if there is no validation split.", ge=0, lt=1)
    augment: Pairs = option(
        {},
        "flip (probability), rotate (degrees), shift (pixels), zoom or contrast (relative); repeatable.",
        metavar="KEY=VALUE",
        common=True,
    )
    classes: tuple[str, ...] = ()  # noted when the run is made, so that a changed folder cannot shift them
    multi_label: bool = False  # likewise

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_strengths(self.augment)
        except ValueError as error:
            raise ValueError(f"augment: {error}") from error
        MaskValues.of(self.foreground_values, self.void)
        normalization(self.normalize, self.channels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.channels, *self.size

    @property
    def normalization(self) -> tuple[Any, Any]:
        """(mean, std) per channel; None, None without."""
        return normalization(self.normalize, self.channels) or (None, None)

    @property
    def pixel_range(self) -> tuple[Any, Any]:
        """The range of the pixels as the network gets them."""
        return pixel_range(*self.normalization)


@dataclass(frozen=True)
class NetworkConfig(Group):
    """The classifier, and the ISNet around it.

    See :class:`isnet.ISNet`.
    """

    variant: str = option(
        AUTO,
        "standard, without a heatmap loss, or an ISNet; auto: selective if training images have masks, else standard.",
        choices=lambda: (AUTO, STANDARD, *VARIANTS),
        common=True,
    )
    arch: str = option(
        "monai:DenseNet121",
        "monai:NAME, torchvision:NAME or timm:NAME (isnet archs lists them), package.module:CALLABLE or file.py:CALLABLE.",
        common=True,
        code=True,
    )
    arch_args: Pairs = option(
        {},
        "Argument of the architecture, its value in JSON or text; repeatable.",
        names=("--arch-arg",),
        metavar="KEY=VALUE",
        common=True,
    )
    weights: str | None = option(
        None,
        "File of weights to begin with: safetensors, or a state_dict in PyTorch's format; a head for other classes is left out.",
        metavar="FILE",
        common=True,
    )
    layers: Names = option(
        (),
        "Module whose relevance is supervised, too (LRP deep supervision); repeatable.",
        names=("--layer",),
        needs="isnet",
    )
    supervise: str | None = option(
        None,
        "Module where the heatmap is taken, and the relevance pass ends, in place of the input: cheaper.",
        needs="isnet",
    )
    eps: float = option(1e-2, "Stabilizer of the epsilon rule.", ge=0)
    form: Form = option(
        "flex", "Where the stabilizer stands: at each ReLU (flex) or at every layer (layerwise).", needs="isnet"
    )
    static: bool = option(
        False, "The model makes the same PyTorch calls in every step: its Python code runs only once.", needs="maps"
    )
    less_memory: bool = option(
        False, "Save less of a step for its backward pass and compute it again there.", needs="maps"
    )


def _of_isnet(default: Any, help: str, **more: Any) -> Any:
    """An option of the heatmap loss, which acts after the warm-up."""
    return option(default, help, **{"needs": "isnet", "resumable": "after warm-up", **more})


@dataclass(frozen=True)
class LossConfig(Group):
    """The heatmap loss and its share of the whole.

    See :class:`isnet.ISNetLoss`.
    """

    p: float = _of_isnet(0.7, "P: loss = (1 - P) classification + P heatmap.", ge=0, le=1, common=True)
    p_ramp: float = _of_isnet(0.0, "Epochs after the warm-up over which P rises from 0.", ge=0)
    p_schedule: Steps = _of_isnet(
        (), "P from that epoch after the warm-up on, 5=0.9 for example; repeatable.", metavar="EPOCH=P"
    )
    balance: Balance = _of_isnet("fixed", "P as set, or from the running means of both losses.")
    heatmap_every: int = _of_isnet(1, "K: heatmap loss on every K-th step, weighted K.", ge=1, common=True)
    share_goal: float | None = _of_isnet(
        None,
        "Share of relevance in the background up to which there is no background loss; instead of the score by decay and E.",
        ge=0,
        lt=1,
        common=True,
    )
    d: float = _of_isnet(0.9, "GWRP decay.", names=("--decay",), ge=0, le=1, common=True, needs="pooled")
    e: float = _of_isnet(
        1.0, "E, the background score that costs log 2.", names=("--background-scale",), gt=0, needs="pooled"
    )
    c1: float | None = _of_isnet(None, "Lower end of natural foreground relevance; measured if left out.", gt=0)
    c2: float | None = _of_isnet(None, "Upper end of natural foreground relevance; measured if left out.", gt=0)
    tune: int = _of_isnet(
        2, "Epochs of plain training from which C1 and C2 are measured.", ge=1, common=True, needs="measured"
    )
    foreground: Foreground = _of_isnet("hybrid", "Right side of the foreground loss.")
    w_foreground: float = _of_isnet(1.0, "Weight of the foreground loss.", ge=0)
    w_background: float = _of_isnet(1.0, "Weight of the background loss.", ge=0)
    layer_decay: float = _of_isnet(0.8, "GWRP decay over the supervised layers.", ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= p <= 1 for _, p in self.p_schedule) or any(epoch < 0 for epoch, _ in self.p_schedule):
            raise ValueError(f"p_schedule: expected epochs >= 0 and P in [0, 1], got {self.p_schedule}")
        epochs = [epoch for epoch, _ in self.p_schedule]
        if len(set(epochs)) < len(epochs):
            raise ValueError(f"p_schedule: expected each epoch once, got {self.p_schedule}")
        if self.balance == "auto" and (self.p_ramp or self.p_schedule):
            raise ValueError("balance: auto leaves no room for p_ramp or p_schedule")
        if (self.c1 is None) != (self.c2 is None):
            raise ValueError(f"c1, c2: give both ends of the range or neither, got {self.c1} and {self.c2}")
        if self.c1 is not None and self.c2 is not None and self.c1 >= self.c2:
            raise ValueError(f"c1, c2: expected c1 < c2, got {self.c1} and {self.c2}")

    @property
    def is_measured(self) -> bool:
        """Whether C1 and C2 are measured before training."""
        return self.c1 is None


@dataclass(frozen=True)
class OptimizerConfig(Group):
    """The optimizer, its batches, and how a step is computed."""

    batch_size: int = option(
        16, "Images per step, all processes together; an epoch's last, smaller batch is left out.", ge=2, common=True
    )
    accumulate: int = option(1, "Parts of a process's share of a batch, one after the other, to save memory.", ge=1)
    optimizer: Literal["sgd", "adamw"] = option("adamw", "The optimizer.")
    lr: float = option(3e-4, "Learning rate.", gt=0, common=True)
    momentum: float = option(0.9, "Momentum of sgd.", ge=0, lt=1, needs="sgd")
    weight_decay: float = option(1e-2, "Weight decay of either optimizer.", ge=0)
    clip_norm: Limit = option(1.0, "Largest norm of the gradient; 0 or none = no limit.")
    precision: Precision = option("float32", "Of the forward pass; the others run it under autocast.")
    ema: float | None = option(
        None, "Decay of a moving average of the weights, which is then scored and kept.", gt=0, lt=1
    )
    sync_batch_norm: bool = option(False, "Batch norm over the images of all processes, each with a GPU.")
    channels_last: bool = option(
        False, "Memory format of model and images.", names=("--channels-last/--channels-first",)
    )
    deterministic: bool = option(False, "Deterministic algorithms only; on a GPU, runs then repeat bit for bit.")
    workers: int = option(0, "Processes that load images; 0 = this one.", ge=0, resumable="always")
    seed: int = option(0, "Seed of every draw, of data and training.", ge=0, le=2**32 - 1, common=True)


@dataclass(frozen=True)
class ScheduleConfig(Group):
    """How long, in which phases, and at which learning rate."""

    epochs: int = option(8, "Epochs after the warm-up.", ge=0, common=True)
    warmup: int = option(
        0, "Epochs before, with the background replaced and the classification loss alone.", ge=0, common=True
    )
    warmup_background: WarmupBackground = option(
        "noise",
        "What replaces it in the warm-up: white noise, noise of several scales, or another image's background.",
        common=True,
        needs="replaced",
    )
    keep_replacing: bool = option(
        False, "Replace the background after the warm-up, too; without one: throughout.", resumable="after warm-up"
    )
    lr_rampup: float = option(0.0, "Epochs over which the learning rate rises from 0.", ge=0)
    lr_after_warmup: float = option(
        0.3, "Factor on the learning rate after the warm-up.", gt=0, needs="warmup", resumable="after warm-up"
    )
    lr_schedule: LRSchedule = option(
        "constant",
        "constant; cosine, towards 0 at the end; step, by gamma at milestones.",
        names=("--schedule",),
        common=True,
        resumable="after warm-up",
    )
    milestones: Epochs = option(
        (),
        "Epoch after the warm-up at which the step schedule falls; repeatable.",
        names=("--milestone",),
        needs="step",
        resumable="after warm-up",
    )
    gamma: float = option(
        0.1, "Factor on the learning rate at each milestone.", gt=0, le=1, needs="step", resumable="after warm-up"
    )
    monitor: Monitor | None = option(
        "loss",
        "Validation score that chooses the best checkpoint; none keeps the last.",
        names=("--best-by",),
        common=True,
    )
    patience: int | None = option(
        None, "Stop after so many epochs without a better score.", ge=1, common=True, resumable="always"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_schedule == "step" and not self.milestones:
            raise ValueError("lr_schedule: step needs milestones (--milestone EPOCH)")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience: needs monitor (--best-by), the score that is to improve")


@dataclass(frozen=True)
class FilesConfig(Group):
    """What a run writes, and when."""

    log_every: int = option(20, "Steps between two lines of the log.", ge=1, resumable="always")
    save_every: int | None = option(
        None, "Steps between two checkpoints, beside the one after each epoch.", ge=1, resumable="always"
    )
    keep_last: int = option(0, "Checkpoints of past epochs to keep.", ge=0, resumable="always")
    loggers: Names = option(
        (),
        "Tracker that gets the log as well: tensorboard, wandb or mlflow; repeatable.",
        names=("--logger",),
        common=True,
        choices=lambda: tuple(LOGGERS),
        resumable="always",
    )
    images_every: int = option(
        1,
        "Epochs between two pictures of validation images with their heatmaps, for the loggers; 0 = none.",
        names=("--log-images-every",),
        ge=0,
        resumable="always",
        needs="logger",
    )
