"""LRP of a whole model: the class most users need."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .engine.adapters import WithArguments
from .engine.replay import StaticCalls
from .engine.target import Target
from .engine.training_mode import warn_of_training_mode
from .engine.verified import Check
from .errors import NonFiniteError
from .functional import is_capturing
from .rules import Composite, Rule, as_composite
from .tape import Tape, record

_ALWAYS_TOLD = {"default", "eps"}


class RuleTable(str):
    """A table as text; a notebook shows it as one.

    Attributes:
        head: names of the columns.
        rows: texts of the cells.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __new__(cls, head: Sequence[str], rows: Sequence[Sequence[str]]) -> RuleTable:
        lines = [tuple(head), *(tuple(row) for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        padded = (
            [*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[len(widths)]] for line in lines
        )
        made = super().__new__(cls, "\n".join("  ".join(cells) for cells in padded))
        made.head, made.rows = lines[0], tuple(lines[1:])
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.head, self.rows

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "".join(f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in cells)

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in self.rows)
        return f"<table><thead><tr>{row(self.head, 'th')}</tr></thead><tbody>{body}</tbody></table>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # in IPython's terminal too, without quotes and \\n


class LRP:
    """Layer-wise relevance propagation through an unchanged PyTorch model.

    Args:
        model: any ``nn.Module`` that maps images (B, C, H, W) or other float tensors to logits (B, K).
        composite: the rule of each layer: a rule for all, or a :class:`Composite`. Default: ``Epsilon(1e-2)``.
        checkpoint: when gradients are on, save less for backward and recompute it there; the numbers are the same.
        static: the model makes the same PyTorch calls whenever the form of its input and its mode are the same: its Python code runs
            once, later passes run these calls alone (:class:`StaticCalls`), which saves most of the overhead on small layers.
        check: True: the model is verified at its first use with each form of input (:func:`lrpkernels.verify`), about one more forward and
            two backward passes on two images; "always": at every use; False: never.

    Example:
        >>> attribution = lrp.LRP(model, composite=lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))
        >>> logits, heatmap = attribution(x, target=3)

    Source: Bach et al. 2015; docs/method.md.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite | Rule | None = None,
        *,
        checkpoint: bool = False,
        static: bool = False,
        check: Check = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.composite = as_composite(composite)
        self.checkpoint = checkpoint
        self.check = check
        self._static = static
        self._calls = StaticCalls() if static else None
        self._with_arguments: tuple[WithArguments, StaticCalls | None] | None = None
        self._looked_at_mode = False

    def __call__(
        self,
        x: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        target: Target = None,
        *,
        output: Callable[[Any], Tensor] | None = None,
        memory_budget: int | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Logits and heatmap of a batch.

        Args:
            x: what the model takes, usually one float tensor (B, C, H, W); a tuple if it takes several, a dict for keyword inputs
                ({"inputs_embeds": e}); token ids are explained through the embeddings that they look up.
            target: what is explained, per image: a class index for all images; a LongTensor [B]; "all" classes; a callable from the
                logits to one scalar per image; a list of T targets (the heatmap gains a dimension, [B, T, ...]; the forward pass is
                shared), where a tuple names one entry of the output: [(-1, 7)] is token 7 at the last position; None: the highest
                logit. Of a dense output [B, K, H, W] an index means channel K summed over positions; a regression output [B] needs
                no target.
            output: picks the logits out of the model's output, if that is not a tensor.
            memory_budget: rough limit in bytes for the targets of one pass; the others follow in turn. None: all at once.
            kwargs: passed on to the model.

        Returns:
            The model's output, and R at its input (a tuple for several, a dict for keyword inputs; R per token of token ids), its shape
            and dtype, in units of the explained score. Both are differentiable (the heatmap once) when gradients are on; use
            ``torch.no_grad()`` for pictures only.

        Raises:
            TypeError, ValueError: an input or target that does not fit.
            lrpkernels.errors.RelevanceError: a model that cannot be explained as asked, or whose heatmap would be wrong
                (VerificationError).
        """
        self._looked_at_mode = self._looked_at_mode or warn_of_training_mode(self.model, stacklevel=2)
        return self._explained(self.model, self._calls, x, target, output, memory_budget, kwargs)

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        output: Callable[[Any], Tensor] | None = None,
        memory_budget: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The heatmap alone, as other packages' ``attribute`` returns it.

        Args:
            inputs: what the model takes, as in a call.
            target: what is explained, as in a call: a list explains several targets of each image, a tensor one per image
                (:class:`lrpkernels.compat.captum.LRP` takes captum's lists).
            additional_forward_args: what the model takes behind its inputs by position, a tuple or a single argument; not explained.
            output, memory_budget, kwargs: as in a call.

        Returns:
            R at the inputs, as in a call: of their shape and dtype, differentiable when gradients are on.

        Raises:
            TypeError, ValueError, lrpkernels.errors.RelevanceError: as in a call; TypeError for further arguments beside keyword inputs.

        Example:
            >>> heatmap = lrp.LRP(model).attribute(x, target=3)
        """
        self._looked_at_mode = self._looked_at_mode or warn_of_training_mode(self.model, stacklevel=2)
        model, calls = self.model, self._calls
        if additional_forward_args is not None:
            if isinstance(inputs, Mapping):
                raise TypeError(
                    "additional_forward_args: further arguments by position go with inputs by position; pass keywords instead"
                )
            if self._with_arguments is None:
                self._with_arguments = WithArguments(model), StaticCalls() if self._static else None
            model, calls = self._with_arguments
            kwargs = {**WithArguments.named(additional_forward_args), **kwargs}
        return self._explained(model, calls, inputs, target, output, memory_budget, kwargs)[1]

    def _explained(
        self,
        model: nn.Module,
        calls: StaticCalls | None,
        x: Any,
        target: Target,
        output: Callable[[Any], Tensor] | None,
        memory_budget: int | None,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        options: dict[str, Any] = {"checkpoint": self.checkpoint, "static": calls, "at": None, "check": self.check}
        with record(model, x, composite=self.composite, **options, **kwargs) as tape:
            heatmap = tape.relevance(target, self.composite, output=output, memory_budget=memory_budget, release=True)
            refuse_non_finite(heatmap, tape, x, kwargs)
            return tape.output, heatmap

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self._options().items())
        return f"LRP({type(self.model).__name__}, {told})"

    def _repr_html_(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        rows = [("model", f"{type(self.model).__name__}, {count:,} parameters")]
        rows += self._options().items()
        return RuleTable(("LRP", ""), rows)._repr_html_()

    def _options(self) -> dict[str, str]:
        """The composite, and the options that are not as they are by default, as texts."""
        chosen = {"checkpoint": self.checkpoint, "static": self._calls is not None, "check": self.check}
        usual = {"checkpoint": False, "static": False, "check": True}
        return {
            "composite": _short(self.composite),
            **{name: repr(value) for name, value in chosen.items() if value != usual[name]},
        }

    def explain(self, x: Tensor | tuple[Tensor, ...]) -> RuleTable:
        """A table of the rule that each layer follows: module, operation, rule, output shape. Runs one forward pass.

        Runs under ``torch.no_grad()`` in the model's present mode.

        Args:
            x: what the model takes.

        Returns:
            A text of one line for each operation (a notebook shows an HTML table), with ``rows``.
        """
        rows = []
        with torch.no_grad(), record(self.model, x, check=self.check) as tape:
            for node, rule in tape.plan(self.composite):
                shape = str(tuple(node.output.shape))
                rows.append((tape.module_path(node.module or self.model), node.label(), repr(rule), shape))
        return RuleTable(("module", "operation", "rule", "output"), rows)


def _short(value: Any) -> str:
    """A rule or composite by what identifies it and the fields that are not as they are by default."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Tensor):
        return f"<tensor of shape {tuple(value.shape)}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_short(key)}: {_short(entry)}" for key, entry in value.items()) + "}"
    if not dataclasses.is_dataclass(value):
        return getattr(value, "__name__", None) or repr(value)
    told = []
    for field in dataclasses.fields(value):
        usual = field.default_factory() if callable(field.default_factory) else field.default
        text = _short(getattr(value, field.name))
        if usual is dataclasses.MISSING or field.name in _ALWAYS_TOLD or text != _short(usual):
            told.append(f"{field.name}={text}")
    return f"{type(value).__name__}({', '.join(told)})"


def refuse_non_finite(heatmap: Any, tape: Tape, x: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a heatmap with NaN or infinite values; the tape is cleared first.

    Args:
        heatmap: relevance, a tensor, or a tuple or dict of them.
        tape: that it comes from.
        x, kwargs: what was recorded.

    Raises:
        NonFiniteError: tells where the first of them comes from.
    """
    maps = (
        heatmap if isinstance(heatmap, tuple) else tuple(heatmap.values()) if isinstance(heatmap, dict) else (heatmap,)
    )
    if any(is_capturing(m.device) for m in maps):
        return  # no value can be read while a graph is captured
    if not all(bool(torch.isfinite(m.detach().sum())) or bool(torch.isfinite(m.detach()).all()) for m in maps):
        tape.clear()
        _explain_non_finite(tape.model, x, kwargs)


def _explain_non_finite(model: nn.Module, x: Any, kwargs: dict[str, Any]) -> None:
    """Find where the NaNs of a heatmap came from, by a second forward pass that keeps every value.

    Raises:
        NonFiniteError: names the input, or the first operation whose output is NaN or infinite, if there is one.
    """
    inputs = x if isinstance(x, Mapping) else dict(enumerate(x if isinstance(x, tuple) else (x,)))
    for name, tensor in inputs.items():
        wrong = ~torch.isfinite(tensor)
        if bool(wrong.any()):
            raise NonFiniteError(
                f"input {name!r} holds {int(wrong.sum())} numbers that are NaN or infinite, of {tensor.numel()}, the first at index "
                f"{tuple(wrong.nonzero()[0].tolist())}; replace them (torch.nan_to_num) or leave these images out"
            )
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), record(model, x, check=False, **kwargs) as tape:
            _check_finite(tape)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:  # the first pass has updated batch-norm statistics
                buffer.copy_(before)
    raise NonFiniteError(
        "the heatmap is not finite although all activations are: a larger eps keeps the relevance pass bounded"
    )


def _check_finite(tape: Tape) -> None:
    for node in tape.nodes:
        for value in node.outputs:
            if value.dtype.is_floating_point and not bool(torch.isfinite(value.tensor).all()):
                where = tape.module_path(node.module or tape.model)
                raise NonFiniteError(
                    f"{where}: the output of {node.label()} is not finite; the heatmap would be meaningless"
                )
