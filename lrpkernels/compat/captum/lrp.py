"""captum's ``LRP`` on this engine."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...attribution import refuse_non_finite
from ...engine.adapters import WithArguments
from ...engine.places import Place
from ...engine.target import select_logits
from ...engine.training_mode import warn_of_training_mode
from ...engine.verified import Check
from ...graph import Node
from ...layers.activation import Activation
from ...layers.arithmetic import Add
from ...layers.batch_norm import BatchNorm
from ...layers.linear import LinearNode
from ...layers.pooling import AveragePool, MaxPool
from ...rules import Composite, Gradient, Rule
from ...rules.views import Recorded
from ...tape import Tape, record
from .rules import ByDefault, for_function, for_weights, identity_of, is_identity, is_rule
from .targets import picker

_Method = TypeVar("_Method", bound=Callable[..., Any])


def unwrappable(method: _Method) -> _Method:
    """The method, with itself as ``__wrapped__``, which captum's NoiseTunnel and other tools call."""

    @functools.wraps(method)
    def attribute(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return cast(_Method, attribute)


_WITH_WEIGHTS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


_UNCHANGED = (nn.ReLU, nn.Dropout, nn.Tanh)  # hand relevance on as it is, whatever their rule, in captum


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no others inside, but for the parametrizations of its own weights."""
    return all(name == "parametrizations" for name, _ in module.named_children())


class LRP:
    """Layer-wise relevance propagation with captum's signature, rules and numbers, through any model.

    Layers with weights, sums and pooling follow the epsilon rule with eps 1e-9 unless ``module.rule`` names another one (captum's rule
    objects, those of :mod:`lrpkernels.compat.captum`, or rules of lrpkernels); activations and dropout hand relevance on unchanged.
    Modules that run several times, functional calls, residual sums and modules that captum does not know work; the model and
    ``module.rule`` stay as they are.

    Args:
        model: any ``nn.Module``.
        check: whether the model is verified at its first use, as in :class:`lrpkernels.LRP`.

    Raises:
        TypeError: no module; a ``module.rule`` that is none.

    Example:
        >>> attribution = LRP(model).attribute(images, target=5)

    Source: Bach et al. 2015; captum 0.9. docs/coming_from_captum.md lists where the numbers differ from captum's, and why.
    """

    multiplies_by_inputs = True

    def __init__(self, model: nn.Module, *, check: Check = True) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = self.forward_func = model
        self._check = check
        self._adapter: WithArguments | None = None
        self._looked_at_mode = False
        self._rules()

    @unwrappable
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance of the inputs.

        Args:
            inputs: a tensor [B, ...], or a tuple of them.
            target: which number of each example's output is explained. An int for all examples; a tuple with an index for each
                dimension behind the batch's; a tensor of one int or of one per example; a list with an int or a tuple per example;
                None for an output of one number per example.
            additional_forward_args: what the model takes behind its inputs, a tuple or a single argument; not explained.
            return_convergence_delta: return the delta as well.
            verbose: print which rule each layer follows.

        Returns:
            R of the inputs, of their shapes, in units of the explained output; without gradients (:class:`lrpkernels.LRP` has them). With
            ``return_convergence_delta`` a tuple of R and the delta [B].

        Raises:
            TargetError, IndexError, TypeError: a target that does not fit the output.
            lrpkernels.errors.RelevanceError: a model that cannot be explained.
        """
        heatmap, _, score = self._explained(inputs, target, additional_forward_args, verbose)
        if not return_convergence_delta:
            return heatmap
        return heatmap, self.compute_convergence_delta(heatmap, score)

    def attribute_future(self) -> None:
        """Not part of LRP, as in captum.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("attribute_future is not implemented for LRP")

    def has_convergence_delta(self) -> bool:
        """True: :meth:`compute_convergence_delta` exists."""
        return True

    def compute_convergence_delta(self, attributions: Tensor | tuple[Tensor, ...], output: Tensor) -> Tensor:
        """How much relevance is lost, to biases and stabilisers: output minus the sum of the attributions.

        Args:
            attributions: [B, ...], one or a tuple.
            output: the explained numbers, [B].

        Returns:
            [B].
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        total: Any = sum(part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts)
        return output.flatten() - total

    # -- how ---------------------------------------------------------------------------------------------------------------------

    def _explained(self, inputs: Any, target: Any, further: Any, verbose: bool) -> tuple[Any, list[list[Any]], Tensor]:
        """R of the inputs, R at each group of places, and the explained numbers."""
        self._looked_at_mode = self._looked_at_mode or warn_of_training_mode(self.model, stacklevel=5)
        model, kwargs = self._called_with(further)
        pick = picker(target)
        with torch.no_grad(), record(model, inputs, check=self._check, **kwargs) as tape:
            score = pick(select_logits(tape.output).detach())
            refuse_non_finite(score, tape, inputs, kwargs)
            composite = self._composite(tape, verbose)
            groups = self._places(tape)
            found = tape.relevance(pick, composite, at=[place for group in groups for place in group])
            heatmap = found.pop("input")
            refuse_non_finite(heatmap, tape, inputs, kwargs)
        if isinstance(inputs, tuple) and not isinstance(heatmap, tuple):
            heatmap = (heatmap,)
        return heatmap, [[found[place] for place in group] for group in groups], score

    def _called_with(self, further: Any) -> tuple[nn.Module, dict[str, Any]]:
        if further is None:
            return self.model, {}
        if self._adapter is None:
            self._adapter = WithArguments(self.model)
        return self._adapter, WithArguments.named(further)

    def _places(self, tape: Tape) -> list[list[Place]]:
        """Where relevance is asked for, beside the inputs."""
        return []

    def _rules(self) -> dict[str, tuple[nn.Module, Any]]:
        """The modules that have a rule of their own, by name.

        Raises:
            TypeError: it is no rule.
        """
        found = {}
        for name, module in self.model.named_modules():
            rule = vars(module).get("rule", getattr(type(module), "rule", None))
            if rule is None:
                continue
            if not is_rule(rule):
                raise TypeError(
                    f"module.rule: {name or '(model)'!r} has {rule!r} of type {type(rule).__name__}, which is no propagation rule; assign "
                    "EpsilonRule(), GammaRule(), ... of captum or lrpkernels.compat.captum, or a rule of lrpkernels"
                )
            found[name or "(model)"] = (module, rule)
        return found

    def _composite(self, tape: Tape, verbose: bool) -> Composite:
        """Which operation follows which rule, now that it is known what each module runs."""
        nodes: dict[int, list[Node]] = {}
        for node in tape.nodes:
            nodes.setdefault(id(node.module), []).append(node)
        layers: dict[Any, Rule] = {}
        last: dict[int, Rule] = {}
        given = self._rules()
        for name, module in self.model.named_modules():
            name = name or "(model)"
            ran = nodes.get(id(module), [])
            if name in given and not is_leaf(module):
                warnings.warn(
                    f"module.rule: {name!r} ({type(module).__name__}) contains other modules, so its rule is not used, as in captum; "
                    "assign it to each of them",
                    stacklevel=5,
                )
            elif name in given and ran:
                self._assign(tape, name, module, given[name][1], ran, layers, last)
            elif any(isinstance(node, BatchNorm) for node in ran):
                layers[name] = ByDefault(owner=name)  # a layer of its own, as in captum
            if verbose and ran and name in given:
                print(f"Applied {given[name][1]!r} on layer {name}: {module}")
        return _ByOperation(layers, default=ByDefault(), last=last)

    def _assign(
        self,
        tape: Tape,
        name: str,
        module: nn.Module,
        rule: Any,
        ran: list[Node],
        layers: dict[Any, Rule],
        last: dict[int, Rule],
    ) -> None:
        """Note the rules of what one module ran."""
        if isinstance(rule, Rule):
            layers[name] = rule
            return
        if type(module) in _UNCHANGED:
            return
        calls = tape.calls_of(module)
        weight = getattr(module, "weight", None)
        own = all(isinstance(node, LinearNode) and node.weight is weight for node in ran)
        if isinstance(module, _WITH_WEIGHTS) or own:
            inputs, outputs = (tuple(v.tensor for v in values) for values in calls[0])
            layers[name] = for_weights(rule, name, module, inputs, outputs[0])
            return
        single = len(ran) == len(calls)
        if is_identity(rule):
            layers[name] = identity_of(ran[0] if single else None, name, module)
        elif single and isinstance(ran[0], (Add, AveragePool, MaxPool)):
            layers[name] = ByDefault(for_function(rule, name, module, ran[0]).eps, owner=name)
        elif single:
            layers[name] = for_function(rule, name, module, ran[0])
        else:  # by the gradient to its last operation, where the stabiliser is
            layers[name] = Gradient()
            for value in (value for call in calls for value in call.outputs):
                found = for_function(rule, name, module, value.producer)
                if not isinstance(value.producer, Activation) or len(value.producer.inputs) == 1:
                    last[id(value)] = found


@dataclass(frozen=True)
class _ByOperation(Composite):
    """A composite that has rules for single operations, too.

    Attributes:
        last: a rule by the id of the value that an operation makes.
    """

    last: Mapping[int, Rule] = field(default_factory=dict)

    def rule_for(self, op: Recorded, name: str, reads_input: bool) -> Rule:
        outputs = op.outputs if isinstance(op, Node) else ()
        found = self.last.get(id(outputs[0])) if outputs else None
        return super().rule_for(op, name, reads_input) if found is None else found
