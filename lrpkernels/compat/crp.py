"""zennit-crp's interface: concept relevance propagation, relevance that passes chosen channels, with many conditions in one pass.

``from crp.attribution import CondAttribution``, ``from crp.concepts import ChannelConcept`` -> ``from lrpkernels.compat.crp import ...``.
What it does is ``tape.relevance(conditions=...)`` (docs/rules.md); docs/coming_from_zennit.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..rules import Composite, Gradient, as_composite
from ..tape import Tape, record
from .zennit.convert import convert

Condition = Mapping[str, Any]
MaskOf = Callable[[int, Any, str], Callable[[Tensor], Tensor]]


class AttributionResults(NamedTuple):
    """What :class:`CondAttribution` returns, one row for each pair of image and condition, conditions last.

    Attributes:
        heatmap: relevance summed over channels, [N, H, W].
        activations: values of the recorded layers, by name, [N, ...].
        relevances: their relevance, likewise.
        prediction: the model's output [N, K], or the values of ``start_layer``.
    """

    heatmap: Tensor
    activations: dict[str, Tensor]
    relevances: dict[str, Tensor]
    prediction: Tensor


class ChannelConcept:
    """Channels as concepts."""

    @staticmethod
    def mask(batch_id: int, concept_ids: Any, layer_name: str | None = None) -> Callable[[Tensor], Tensor]:
        """A function that keeps the given channels of one image of a relevance [B, C, ...], and of other images all."""

        def keep(relevance: Tensor) -> Tensor:
            channels = torch.zeros_like(relevance[batch_id])
            channels[concept_ids] = 1
            return _with_row(relevance, batch_id, relevance[batch_id] * channels)

        return keep

    @staticmethod
    def mask_rf(
        batch_id: int, c_n_map: Mapping[int, Sequence[int]], layer_name: str | None = None
    ) -> Callable[[Tensor], Tensor]:
        """As :meth:`mask`, of each channel only the neurons that are listed, by their flat index."""

        def keep(relevance: Tensor) -> Tensor:
            row = relevance[batch_id]
            neurons = torch.zeros_like(row).flatten(1) if row.dim() > 1 else torch.zeros_like(row).unsqueeze(1)
            for channel, numbers in c_n_map.items():
                neurons[channel, numbers] = 1
            return _with_row(relevance, batch_id, row * neurons.view(row.shape))

        return keep

    @staticmethod
    def attribute(
        relevance: Tensor, mask: Tensor | None = None, layer_name: str | None = None, abs_norm: bool = True
    ) -> Tensor:
        """Relevance by channel, [B, C], of a relevance [B, C, ...]; ``abs_norm``: in units of each image's sum of sizes."""
        summed = (
            (relevance if mask is None else relevance * mask).flatten(2).sum(-1) if relevance.dim() > 2 else relevance
        )
        return summed / (summed.abs().sum(-1, keepdim=True) + 1e-10) if abs_norm else summed


class CondAttribution:
    """Heatmaps under conditions.

    Args:
        model: what is explained; it is left as it is.
        device: where it is; None: that of its parameters.
        overwrite_data_grad, no_param_grad: accepted; neither the data's ``grad`` nor the parameters are touched.
    """

    MODEL_OUTPUT_NAME = "y"

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        overwrite_data_grad: bool = True,
        no_param_grad: bool = True,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device if device is None else torch.device(device)

    def __call__(
        self,
        data: Tensor,
        conditions: Sequence[Condition],
        composite: Any = None,
        record_layer: Sequence[str] = (),
        mask_map: MaskOf | Mapping[str, MaskOf] = ChannelConcept.mask,
        start_layer: str | None = None,
        init_rel: Any = None,
        on_device: torch.device | str | None = None,
        exclude_parallel: bool = True,
    ) -> AttributionResults:
        """Conditional relevance.

        Args:
            data: images [B, ...].
            conditions: dicts from layers to channels ("y": classes). As many as images: one for each; else every condition for every
                image, rows in the order of images.
            composite: of zennit (the installed one, or ours), or of lrpkernels; None: gradients.
            record_layer: layers whose values and relevance are returned beside those that conditions name.
            mask_map: (0, channels, layer) -> function that masks a relevance [1, ...], or such a function for each layer.
            start_layer: start there and not at the output.
            init_rel: relevance to start from: a tensor, a number, or a function of the output (or of the layer's values); None: these
                themselves.
            on_device: where results go.
            exclude_parallel: drop what goes by the layers that a condition names.

        Raises:
            ValueError: conditions that do not fit, or start nowhere.
        """
        self._check(conditions, start_layer, init_rel)
        if len(conditions) == len(data) > 1:
            rows = [
                self(data[i : i + 1], [condition], composite, record_layer, mask_map, start_layer,
                     init_rel[i : i + 1] if isinstance(init_rel, Tensor) and len(init_rel) == len(data) else init_rel,
                     on_device, exclude_parallel)
                for i, condition in enumerate(conditions)
            ]  # fmt: skip
            return _joined(rows)
        options = (record_layer, mask_map, start_layer, init_rel, on_device, exclude_parallel)
        with torch.no_grad(), record(self.model, data.detach()) as tape:
            return self._answer(tape, conditions, self._rules(composite), *options)

    def generate(
        self,
        data: Tensor,
        conditions: Sequence[Condition],
        composite: Any = None,
        record_layer: Sequence[str] = (),
        mask_map: MaskOf | Mapping[str, MaskOf] = ChannelConcept.mask,
        start_layer: str | None = None,
        init_rel: Any = None,
        batch_size: int = 10,
        on_device: torch.device | str | None = None,
        exclude_parallel: bool = True,
        verbose: bool = True,
    ) -> Iterator[AttributionResults]:
        """As a call for one image, ``batch_size`` conditions at a time, all from one forward pass."""
        self._check(conditions, start_layer, init_rel)
        options = (record_layer, mask_map, start_layer, init_rel, on_device, exclude_parallel)
        with torch.no_grad(), record(self.model, data.detach()) as tape:
            rules = self._rules(composite)
            for begin in range(0, len(conditions), batch_size):
                yield self._answer(tape, conditions[begin : begin + batch_size], rules, *options)

    def _check(self, conditions: Sequence[Condition], start_layer: str | None, init_rel: Any) -> None:
        if not conditions:
            raise ValueError("conditions: expected a list of dicts, one for each heatmap, got none")
        for number, condition in enumerate(conditions):
            if self.MODEL_OUTPUT_NAME not in condition and start_layer is None and init_rel is None:
                raise ValueError(
                    f"conditions[{number}]: nothing says where relevance starts; name classes, {{{self.MODEL_OUTPUT_NAME!r}: [...]}}, or "
                    "give start_layer or init_rel"
                )

    def _rules(self, composite: Any) -> Composite:
        if composite is None:
            return Composite(default=Gradient(), multiply_by_inputs=False)
        return as_composite(convert(composite, self.model))

    def _answer(
        self,
        tape: Tape,
        conditions: Sequence[Condition],
        rules: Composite,
        record_layer: Sequence[str],
        mask_map: MaskOf | Mapping[str, MaskOf],
        start_layer: str | None,
        init_rel: Any,
        on_device: torch.device | str | None,
        exclude_parallel: bool,
    ) -> AttributionResults:
        named = [{key: c for key, c in given.items() if key != self.MODEL_OUTPUT_NAME} for given in conditions]
        layers = dict.fromkeys([*record_layer, *(name for condition in named for name in condition)])
        if start_layer is not None:
            layers[start_layer] = None
        values = {name: tape.values_at(name)[0] for name in layers}
        kept = [
            {name: self._kept(mask_map, c, name, values[name].form()) for name, c in given.items()} for given in named
        ]
        first = tape.output if start_layer is None else values[start_layer].tensor
        start = self._started(first, conditions, init_rel, start_layer is not None)
        options: dict[str, Any] = {"at": [*layers], "conditions": kept, "exclude_parallel": exclude_parallel}
        if rules.multiply_by_inputs:
            found = tape.relevance(None, rules, start=start if start_layer is None else {start_layer: start}, **options)
        elif start_layer is None:
            found = tape.relevance([_weighted(g) for g in start.unbind(1)], rules, **options)
        else:
            raise ValueError("start_layer: gradients start at the output; give a composite of relevance")

        def rows(tensor: Tensor) -> Tensor:
            return tensor.detach().flatten(0, 1).to(on_device or tensor.device)

        def repeated(tensor: Tensor) -> Tensor:
            return tensor.detach().repeat_interleave(len(conditions), 0).to(on_device or tensor.device)

        return AttributionResults(
            rows(found["input"]).sum(1),
            {name: repeated(value.tensor) for name, value in values.items()},
            {name: rows(found[name]) for name in layers},
            repeated(first),
        )

    def _kept(self, mask_map: MaskOf | Mapping[str, MaskOf], channels: Any, layer: str, form: Tensor) -> Tensor:
        """What a condition keeps of a layer, [1, ...]: the mask function, applied to ones."""
        mask = mask_map[layer] if isinstance(mask_map, Mapping) else mask_map
        try:
            return mask(0, channels, layer)(torch.ones_like(form[:1]))
        except IndexError as error:
            raise ValueError(f"conditions: {layer!r} has {form.shape[1]} channels, got {channels!r}") from error

    def _started(self, first: Tensor, conditions: Sequence[Condition], init_rel: Any, hidden: bool) -> Tensor:
        """Relevance to start from, [B, T, ...]."""
        given = init_rel(first) if callable(init_rel) else first if init_rel is None else init_rel
        given = given.to(first) if isinstance(given, Tensor) else torch.full_like(first, given)
        each = []
        for condition in conditions:
            if hidden or self.MODEL_OUTPUT_NAME not in condition:
                each.append(given)
                continue
            classes = torch.zeros_like(first)
            classes[:, condition[self.MODEL_OUTPUT_NAME]] = 1
            each.append(given * classes)
        return torch.stack(each, 1)


def _weighted(gradient: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: (logits * gradient).flatten(1).sum(1)


def _with_row(tensor: Tensor, row: int, value: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


def _joined(rows: Sequence[AttributionResults]) -> AttributionResults:
    def named(dicts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        shared = [name for name in dicts[0] if all(name in each for each in dicts)]
        return {name: torch.cat([each[name] for each in dicts]) for name in shared}

    return AttributionResults(
        torch.cat([row.heatmap for row in rows]),
        named([row.activations for row in rows]),
        named([row.relevances for row in rows]),
        torch.cat([row.prediction for row in rows]),
    )
