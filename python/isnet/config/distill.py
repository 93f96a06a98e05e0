"""The options of a run with a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isnet.config.option import Group, option
from isnet.config.texts import Names
from isnet.distillation import EXPONENTS, Head, Match, Start, ViewName


@dataclass(frozen=True)
class DistillConfig(Group):
    """A teacher, whose heatmaps take the place of labels and heatmap loss.

    See :class:`isnet.Distilled`.
    """

    teacher: str | None = option(
        None, "Folder of the teacher, a trained run of the same classes; no label is used.", metavar="RUN", common=True
    )
    distill: Match = option(
        "maps",
        "What is to equal the teacher's: heatmaps; or, as controls, logits or the features of the last stage.",
        common=True,
        needs="teacher",
    )
    view: ViewName = option(
        "image",
        "What the teacher sees: the image, or its foreground on another background.",
        common=True,
        needs="teacher",
    )
    view_code: str | None = option(
        None,
        "package.module:callable (images, masks, generator) -> what the teacher sees, another modality, say.",
        code=True,
        needs="teacher",
    )
    eps_low: float = option(
        EXPONENTS[0], "Each image's stabilizer is 10^U(eps_low, eps_high), for both networks.", needs="matched maps"
    )
    eps_high: float = option(EXPONENTS[1], "The other end.", needs="matched maps")
    match_layers: Names = option(
        ("auto",),
        "Module whose maps (or features) are compared, NAME or STUDENT=TEACHER; repeatable. auto: the last of each shape that both have; "
        "none: the input's maps alone.",
        names=("--match-layer",),
        needs="teacher",
    )
    head: Head = option("copy", "Last layer: a frozen copy of the teacher's, or free.", needs="teacher")
    start: Start = option(
        "random", "Begin at random (or with weights), or as the teacher.", names=("--begin-as",), needs="teacher"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps_low > self.eps_high:
            raise ValueError(f"eps_low, eps_high: expected eps_low <= eps_high, got {self.eps_low} and {self.eps_high}")
        if len(self.match_layers) > 1 and {"auto", "none"} & set(self.match_layers):
            raise ValueError(f"match_layers: expected auto, none or names of modules, got {self.match_layers}")
        if self.match_layers == ("none",) and self.distill == "features":
            raise ValueError("match_layers: features are compared at a layer; expected auto or a name, got none")

    @property
    def layers(self) -> Any:
        """As :class:`isnet.Distilled` takes them."""
        if self.match_layers in (("auto",), ()):
            return "auto"
        pairs = [name.partition("=") for name in self.match_layers if name != "none"]
        return {student: teacher or student for student, _, teacher in pairs}
