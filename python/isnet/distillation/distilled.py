"""Distilled: any classifier, trained so that its heatmaps equal those of a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from isnet.distillation.layers import copy_head, copy_weights, map_shapes, matching_layers, require_layers, watched
from isnet.distillation.views import View, require_view, seen
from isnet.variants import stochastic_target

Match = Literal["maps", "logits", "features"]
Head = Literal["copy", "free"]
Start = Literal["random", "teacher"]
Layers = Literal["auto"] | Sequence[str] | Mapping[str, str]
EXPONENTS = (-1.0, 0.0)


@dataclass(frozen=True)
class DistilledOutput:
    """What a :class:`Distilled` in training mode returns.

    Attributes:
        logits: [B, K], of the student.
        teacher_logits: [B, K], without a graph.
        match: what is to be compared.
        student: {"input": [B, C, H, W], layer: [B, c, h, w]} of its maps R, differentiable, or its features; empty for logits.
        teacher: likewise, by the student's names, without a graph.
    """

    logits: Tensor
    teacher_logits: Tensor
    match: Match
    student: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)


class Distilled(nn.Module):
    """A student that learns from the heatmaps of a teacher: no label is used, and what the teacher ignores is not learned.

    In evaluation mode it is exactly the student, at its cost. In training mode each call explains one class per image with both networks,
    drawn from the teacher's logits (with probability 1/2 the highest, else one of the others, uniformly), by the epsilon rule with a
    stabilizer drawn per image; train on what it returns with :class:`isnet.MatchingLoss`.

    Args:
        student: any ``nn.Module`` from images [B, C, H, W] to logits [B, K]; it is trained in place.
        teacher: another, of the same classes: kept in evaluation mode, its parameters frozen.
        view: what the teacher sees (:func:`isnet.distillation.views.seen`): "image", "zeros", "ones", "noise", "swap", or a callable.
        eps: (a, b): the stabilizer of each image is 10^U(a, b), the same for both networks; a <= b.
        layers: whose maps are compared beside the input's. "auto": of the modules with one name and one output shape [C, ...] in both,
            with more than one position, that run once, the last of each shape; names; or {student's name: teacher's}; (): none.
        head: "copy": the student's last linear layer is the teacher's, frozen, which fixes sign and scale of its logits; "free".
        start: "random": the student as it is; "teacher": with the teacher's weights, for networks of one architecture.
        match: "maps"; the controls: "logits" alone, or "features": of the last of the layers that "auto" finds.
        input_range: (low, high) of the pixels, numbers or one per channel, for views on "ones" and "noise".
        generator: a CPU ``torch.Generator`` of all draws; None: PyTorch's default one.
        static: both models make the same PyTorch calls in every step (:class:`lrpkernels.StaticCalls` states the requirements).
        checkpoint: save less of a step for its backward and recompute it there.
        check: whether the models are verified at their first use with each form of input, as in :class:`lrpkernels.LRP`.

    Attributes:
        model: the student.

    Raises:
        TypeError: student or teacher is not a module.
        ValueError: an unknown name, exponents out of order, a head or start that does not fit both networks.

    Source: facts of arXiv 2407.09788 (Training with Explanations Alone) and its public code; docs/distillation.md.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        view: View = "image",
        eps: tuple[float, float] = EXPONENTS,
        layers: Layers = "auto",
        head: Head = "copy",
        start: Start = "random",
        match: Match = "maps",
        input_range: tuple[Any, Any] = (0.0, 1.0),
        generator: torch.Generator | None = None,
        static: bool = False,
        checkpoint: bool = False,
        check: bool | Literal["always"] = True,
    ) -> None:
        super().__init__()
        for name, module in (("student", student), ("teacher", teacher)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
        if student is teacher:
            raise ValueError("student, teacher: expected two networks, got one; copy.deepcopy(teacher) makes another")
        for name, value, known in (("head", head, Head), ("start", start, Start), ("match", match, Match)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        require_view(view)
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.view, self.eps, self.match, self.input_range = view, _exponents(eps), match, input_range
        self.generator, self.static, self.checkpoint, self.check = generator, static, checkpoint, check
        self.layers = layers
        self._pairs = self._given_pairs()
        self._calls = [lrp.StaticCalls() if static else None for _ in range(2)]
        if start == "teacher":
            copy_weights(student, teacher)
        if head == "copy":
            copy_head(student, teacher)

    @property
    def model(self) -> nn.Module:
        """The student."""
        return self.student

    def around(self, student: nn.Module, generator: torch.Generator) -> Distilled:
        """The same, with the same layers, around another student of this architecture, unchanged, to score it: ready for calls."""
        found = Distilled(
            student, self.teacher, self.view, self.eps, self.layers, "free", "random", self.match, self.input_range, generator
        )  # fmt: skip
        found._pairs, found.training = self._pairs, True
        return found

    def train(self, mode: bool = True) -> Distilled:
        """Training or evaluation mode of the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, x: Tensor, masks: Tensor | None = None, place: tuple[int, int] | None = None
    ) -> DistilledOutput | Tensor:
        """Logits [B, K] in evaluation mode; a :class:`DistilledOutput` in training mode.

        Args:
            x: images [B, C, H, W].
            masks: [B, 1, H, W], 1 = foreground, for views of the foreground.
            place: (i, n): these images are those from i on of a batch of n, and the draws are those of all n. None: these are all.

        Raises:
            ValueError: other logits than [B, K], or not of as many classes in both; layers that "auto" does not find, or whose maps
                differ in shape; a view that cannot be shown.
            lrpkernels.RelevanceError: a model cannot be explained.
        """
        if not self.training:
            return lrp.select_logits(self.student(x))
        eps = self._draw(len(x), place)
        shown = seen(self.view, x, masks, self.generator, self.input_range, place)
        if self._pairs is None and self.match != "logits":
            self._pairs = self._auto_pairs(x, shown)
        if self.match != "maps":
            return self._without_maps(x, shown)
        with torch.no_grad():
            logits, target, theirs = self._explained(self.teacher, shown, None, eps, place)
        own, _, ours = self._explained(self.student, x, target, eps, None)
        self._require_classes(own, logits)
        pairs = {"input": "input", **(self._pairs or {})}
        found = {name: (ours[name], theirs[other]) for name, other in pairs.items()}
        for name, (s, t) in found.items():
            if s.shape != t.shape:
                remedy = "choose a view of the student's shape" if name == "input" else "leave it out of layers"
                raise ValueError(
                    f"layers: the maps at {name} differ in shape, {list(s.shape[1:])} in the student, {list(t.shape[1:])} in the teacher; "
                    f"{remedy}"
                )
        return DistilledOutput(own, logits, "maps", *({name: pair[i] for name, pair in found.items()} for i in (0, 1)))

    def _draw(self, count: int, place: tuple[int, int] | None) -> Tensor:
        """A stabilizer for each of the images, on the CPU, so that a seed gives the same on every device."""
        first, total = place or (0, count)
        low, high = self.eps
        exponents = low + (high - low) * torch.rand(total, generator=self.generator)
        return 10 ** exponents[first : first + count]

    def _explained(
        self, model: nn.Module, x: Tensor, target: Tensor | None, eps: Tensor, place: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits, the classes explained (drawn, if none are given) and the maps of one network."""
        own = model is self.student
        at = list(self._pairs if own else self._pairs.values()) if self._pairs else []
        rule = lrp.Epsilon(eps.to(x.device))
        options: dict[str, Any] = {"at": at, "checkpoint": own and self.checkpoint, "static": self._calls[not own]}
        with lrp.record(model, x, composite=rule, check=self.check, **options) as tape:
            logits = lrp.select_logits(tape.output)
            if logits.dim() != 2:
                raise ValueError(f"a model must return logits of shape [B, K], got shape {tuple(logits.shape)}")
            if target is None:
                target = stochastic_target(logits, self.generator, place)
            elif int(target.max()) >= logits.shape[1]:
                raise ValueError(f"student: expected more than {int(target.max())} classes, got {logits.shape[1]}")
            return logits, target, tape.relevance(target, rule, at=at, release=True)

    def _without_maps(self, x: Tensor, shown: Tensor) -> DistilledOutput:
        """Logits, and the features of one layer if these are to be compared."""
        pairs = dict(list(self._pairs.items())[-1:]) if self._pairs and self.match == "features" else {}
        with torch.no_grad(), watched(self.teacher, list(pairs.values())) as theirs:
            logits = lrp.select_logits(self.teacher(shown))
        with watched(self.student, list(pairs)) as ours:
            own = lrp.select_logits(self.student(x))
        self._require_classes(own, logits)
        features = {name: (ours[name][0], theirs[other][0]) for name, other in pairs.items()}
        return DistilledOutput(
            own, logits, self.match, *({name: pair[i] for name, pair in features.items()} for i in (0, 1))
        )

    def _require_classes(self, own: Tensor, logits: Tensor) -> None:
        if own.shape != logits.shape:
            raise ValueError(
                f"student, teacher: expected logits of one shape, got {list(own.shape)} and {list(logits.shape)}"
            )

    # ---- layers

    def _given_pairs(self) -> dict[str, str] | None:
        """Student's name -> teacher's; None: to be found in the first batch."""
        if self.layers == "auto":
            return None
        if isinstance(self.layers, str):
            raise ValueError(f'layers must be "auto", a list of module names or pairs of them, got {self.layers!r}')
        pairs = dict(self.layers) if isinstance(self.layers, Mapping) else {name: name for name in self.layers}
        require_layers(self.student, list(pairs), "student")
        require_layers(self.teacher, list(pairs.values()), "teacher")
        if self.match == "features" and not pairs:
            raise ValueError("layers: features are compared at a layer; name one, or use auto")
        return pairs

    def _auto_pairs(self, x: Tensor, shown: Tensor) -> dict[str, str]:
        shapes = [map_shapes(model, images[:1]) for model, images in ((self.student, x), (self.teacher, shown))]
        return {name: name for name in matching_layers(*shapes)}


def _exponents(eps: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in eps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"eps must be two exponents (a, b) of 10, got {eps!r}") from error
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"eps must be two finite exponents (a, b) of 10 with a <= b, got {eps!r}")
    return low, high
