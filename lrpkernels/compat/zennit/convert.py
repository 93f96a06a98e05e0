"""Rules and composites of zennit, ours of its names or the installed package's, as rules and composites of this engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ... import rules as lrp
from ...rules.composite import Selector
from .hook_rule import HookRule, Unruled
from .hooks import Assigned, assigned, is_mapping
from .layer import Sum
from .types import Activation, AvgPool, BatchNorm

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
_GRADIENTS = (lrp.ReLUDeconvNet, lrp.ReLUGuidedBackprop, lrp.ReLUBetaSmooth)


class UnknownHookError(TypeError):
    """What the engine has no rule for: a hook of the user's own that is written as code, or plain gradients between rules."""


def convert(composite: Any, model: nn.Module | None = None, *, merge: bool = True) -> lrp.Composite | lrp.Rule:
    """A composite or rule of zennit as one of this engine; one of the engine is returned as it is.

    Batch norms behind layers are merged, so canonizers have nothing left to do: they are passed over.

    Args:
        composite: of this package, or of the installed zennit: a composite, or a rule (a hook).
        model: what it will explain. With it, any composite can be converted, module by module. Without it only those that are made of
            maps from types and names; the first map's rule then goes to the layers that read the input.
        merge: False: batch norms are layers of their own, as in zennit without a canonizer; needs the model.

    Returns:
        For :class:`lrpkernels.LRP`, :func:`lrpkernels.record` and the like: a :class:`lrpkernels.Composite`, or a rule for a rule.

    Raises:
        TypeError: neither a composite nor a rule, or (UnknownHookError) a hook written in code, with a ``backward`` of its own.
        ValueError: the model is needed.
    """
    if isinstance(composite, (lrp.Composite, lrp.Rule)):
        return composite
    if is_mapping(composite):
        if model is not None:
            return of_assigned(assigned(composite.module_map, model), model, typed(composite), merge)
        if not merge:
            raise ValueError("convert: merge=False names the batch norms of a model; pass the model")
        return _of_maps(composite)
    return rule_of(composite)


def rule_of(hook: Any) -> lrp.Rule:
    """The engine's rule for a hook.

    Raises:
        TypeError: not a hook, or (UnknownHookError) one that is written in code.
    """
    kind = type(hook)
    if not (hasattr(hook, "backward") and hasattr(hook, "stored_tensors")):
        raise TypeError(f"convert: expected a rule or composite of zennit or lrpkernels, got {kind.__name__}")
    known = kind.__module__ in ("zennit.rules", f"{__package__}.rules")
    if known and kind.__name__ in _SIMPLE:
        return _SIMPLE[kind.__name__](hook)
    runs = hasattr(hook, "gradient_mapper") and hasattr(hook, "param_modifiers")
    if known and runs:
        eps, zero = _stabilizer(hook), _zero_params(hook)
        if eps is not None and zero <= {"bias"}:
            native = _NATIVE[kind.__name__](hook, eps, "bias" not in zero)
            if native is not None:
                return native
    if runs and _inherits_backward(kind):
        return HookRule(hook)
    raise UnknownHookError(
        f"convert: {kind.__name__} is a hook with a `backward` of its own, which the engine cannot read; write it as a BasicHook, or as an "
        "lrpkernels.Rule"
    )


def of_assigned(
    found: Assigned, model: nn.Module, types: Sequence[tuple[Any, Any]] = (), merge: bool = True
) -> lrp.Composite:
    """A composite from the hook of each module.

    Args:
        found: (name, module, hook).
        model: all modules.
        types: (types, hook), for functional calls, which are no modules.
        merge: batch norms with the layers ahead, whatever their own hook.

    Raises:
        UnknownHookError: see :func:`rule_of`.
    """
    leaves = [(name, module, hook) for name, module, hook in found if not any(True for _ in module.children())]
    inner = [hook for name, module, hook in found if any(True for _ in module.children())]
    for hook in inner:
        if type(rule_of(hook)) is not lrp.Pass:
            raise UnknownHookError(
                f"convert: {type(hook).__name__} is chosen for a module that only calls others; choose it for those"
            )
    rules = {id(hook): rule_of(hook) for _, _, hook in leaves}
    if rules and all(isinstance(rule, _GRADIENTS) for rule in rules.values()):
        return _modified_gradient([(name, module, rules[id(hook)]) for name, module, hook in leaves], model)
    if any(isinstance(rule, _GRADIENTS) for rule in rules.values()):
        raise UnknownHookError("convert: a rule that modifies the gradient of ReLUs stands beside rules of relevance")
    members: dict[int, set[int]] = {}
    for _, module, hook in leaves:
        members.setdefault(id(hook), set()).add(id(module))
    layers: dict[Selector, lrp.Rule] = {_member_of(ids): rules[key] for key, ids in members.items()}
    ruled = {id(module) for _, module, _ in leaves}
    bare = {id(module) for module in model.modules() if isinstance(module, _WEIGHTED) and id(module) not in ruled}
    norms = {id(module) for module in model.modules() if isinstance(module, BatchNorm)}
    idle = next((m for m in model.modules() if isinstance(m, Activation) and id(m) not in ruled), None)
    if bare - norms and idle is not None:
        raise UnknownHookError(
            f"convert: neither {type(idle).__name__} nor all layers with weights have a rule, so that relevance follows plain gradients "
            "there; give activations Pass(), or layers a rule"
        )
    layers[_member_of(bare)] = Unruled()
    if not merge:
        own = {id(module): rules[id(hook)] for _, module, hook in leaves}
        found_norms = [(name, module) for name, module in model.named_modules() if id(module) in norms]
        layers.update((name, own.get(id(module), Unruled())) for name, module in found_norms)
    return lrp.Composite({**layers, **_by_type(types)}, default=_of_sums(types, leaves))


def typed(composite: Any) -> list[tuple[Any, Any]]:
    """The (types, hook) pairs of a composite, those that come first first."""
    pairs = list(getattr(composite, "layer_map", None) or ())
    for part in getattr(composite, "composites", ()):
        pairs += typed(part)
    return pairs


def _modified_gradient(found: list[tuple[str, nn.Module, lrp.Rule]], model: nn.Module) -> lrp.Composite:
    """A gradient with another derivative of some ReLUs."""
    chosen = {id(module) for _, module, _ in found}
    everywhere = all(id(module) in chosen for module in model.modules() if isinstance(module, nn.ReLU))
    distinct = list(dict.fromkeys(rule for _, _, rule in found))
    if everywhere and len(distinct) == 1:
        return lrp.Composite(default=distinct[0], multiply_by_inputs=False)
    return lrp.Composite({name: rule for name, _, rule in found}, default=lrp.Gradient(), multiply_by_inputs=False)


def _of_maps(composite: Any) -> lrp.Composite:
    """A composite from its maps alone: all selectors are functions, of which the first that matches counts."""
    entries = list(_entries(composite))
    rules = {id(hook): rule_of(hook) for _, hook in entries}
    if rules and all(isinstance(rule, _GRADIENTS) for rule in rules.values()):
        return lrp.Composite(default=next(iter(rules.values())), multiply_by_inputs=False)
    layers: dict[Selector, lrp.Rule] = {selector: rules[id(hook)] for selector, hook in entries}
    layers[lambda name, module: isinstance(module, _WEIGHTED)] = Unruled()
    first = [hook for part in _parts(composite) for _, hook in getattr(part, "first_map", None) or ()]
    if first and not getattr(composite, "first_map", None):
        raise ValueError(
            f"convert: which layer of {type(composite).__name__} comes first shows on a model; pass it, convert(composite, model)"
        )
    types = typed(composite)
    return lrp.Composite(
        {**layers, **_by_type(types)}, first=rule_of(first[0]) if first else None, default=_of_sums(types, ())
    )


def _parts(composite: Any) -> Iterable[Any]:
    yield composite
    for part in getattr(composite, "composites", ()):
        yield from _parts(part)


def _entries(composite: Any) -> Iterable[tuple[Callable[[str, nn.Module], bool], Any]]:
    for part in _parts(composite):
        maps = [getattr(part, name, None) for name in ("name_map", "layer_map", "composites")]
        if all(found is None for found in maps):
            raise ValueError(
                f"convert: {type(part).__name__} chooses rules by its own code; pass the model that it will explain, convert(composite, "
                "model)"
            )
        for names, hook in maps[0] or ():
            yield _named(tuple(names)), hook
        for types, hook in maps[1] or ():
            yield _typed(types), hook


def _member_of(ids: set[int]) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: id(module) in ids


def _named(names: tuple[str, ...]) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: name in names


def _typed(types: Any) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: isinstance(module, types)


def _flat(types: Any) -> Iterable[type]:
    """The module types of a nested tuple; zennit's abstract types hold theirs in ``__subclass__``."""
    if isinstance(types, (tuple, list)):
        for kind in types:
            yield from _flat(kind)
    elif "__subclass__" in vars(types):
        yield from _flat(vars(types)["__subclass__"])
    else:
        yield types


def _by_type(types: Sequence[tuple[Any, Any]]) -> dict[Selector, lrp.Rule]:
    """Rules of functional calls with weights and of averages, as the modules that do the same have them."""
    found: dict[Selector, lrp.Rule] = {}
    for kinds, hook in types:
        for kind in _flat(kinds):
            if issubclass(kind, (*_WEIGHTED, *AvgPool)):
                found.setdefault(kind, rule_of(hook))
    for kind in _WEIGHTED:
        found.setdefault(kind, Unruled())
    return found


def _of_sums(types: Sequence[tuple[Any, Any]], leaves: Iterable[tuple[str, nn.Module, Any]]) -> lrp.Rule:
    """The rule of everything else: of sums, as zennit's ``Sum`` has it, else of averages; sums and averages are shared out exactly."""
    for wanted in ("Sum", *(kind.__name__ for kind in AvgPool)):
        for kinds, hook in types:
            if any(kind.__name__ == wanted for kind in _flat(kinds)):
                rule = rule_of(hook)
                return rule if isinstance(rule, lrp.Norm) or not rule.yields_relevance else lrp.Norm()
    for _, module, hook in leaves:
        if isinstance(module, Sum):
            return rule_of(hook)
    return lrp.Norm()


# -- reading hooks -------------------------------------------------------------------------------------------------------------------


def _read(hook: Any, name: str, functions: Iterable[Any]) -> Any:
    """An argument of a rule: its attribute, or (zennit keeps none) what its functions have closed over."""
    if name in vars(hook):
        return vars(hook)[name]
    for function in functions:
        held = inspect.getclosurevars(function).nonlocals
        if name in held:
            return held[name]
    raise UnknownHookError(f"convert: {type(hook).__name__} of this version of zennit hides its {name!r}")


def _stabilizer(hook: Any) -> float | None:
    """The number that stabilizes; None: it is a function of the denominator."""
    given = vars(hook).get("stabilizer")
    if given is None:
        given = _read(hook, "stabilizer_fn", [hook.gradient_mapper])
    if isinstance(given, (int, float)):
        return float(given)
    plain = type(given).__name__ == "Stabilizer" and not given.clip and not given.norm_scale
    return float(given.epsilon) if plain else None


def _zero_params(hook: Any) -> set[str]:
    """The parameters that a rule takes as zero in its first run."""
    zero = hook.param_modifiers[0].zero_params or ()
    return {zero} if isinstance(zero, str) else set(zero)


def _inherits_backward(kind: type) -> bool:
    owner = next(base for base in kind.__mro__ if "backward" in vars(base))
    return owner.__name__ == "BasicHook"


def _box(hook: Any, eps: float, bias: bool) -> lrp.Rule | None:
    bounds = [_read(hook, name, [hook.input_modifiers[i]]) for i, name in ((1, "low"), (2, "high"))]
    numbers = [bound.item() if isinstance(bound, Tensor) and bound.dim() == 0 else bound for bound in bounds]
    # A tensor is broadcast from its first dimension on in zennit, from its last one here: the same with all dimensions of an image.
    alike = all(isinstance(b, (int, float)) or (b.dim() >= 3 and b.shape[0] == 1) for b in numbers)
    return lrp.ZBox(numbers[0], numbers[1], eps, bias=False) if alike else None


_SIMPLE: dict[str, Callable[[Any], lrp.Rule]] = {
    "Pass": lambda hook: lrp.Pass(),
    "ReLUDeconvNet": lambda hook: lrp.ReLUDeconvNet(),
    "ReLUGuidedBackprop": lambda hook: lrp.ReLUGuidedBackprop(),
    "ReLUBetaSmooth": lambda hook: lrp.ReLUBetaSmooth(float(hook.beta_smooth)),
}
_NATIVE: dict[str, Callable[[Any, float, bool], lrp.Rule | None]] = {
    "Epsilon": lambda hook, eps, bias: lrp.EpsilonLayerwise(eps, bias=bias),
    "Norm": lambda hook, eps, bias: lrp.Norm(eps),
    "ZPlus": lambda hook, eps, bias: lrp.ZPlus(eps, bias=bias),
    "AlphaBeta": lambda hook, eps, bias: lrp.AlphaBeta(
        float(_read(hook, "alpha", [hook.reducer])), float(_read(hook, "beta", [hook.reducer])), eps, bias=bias
    ),
    "Gamma": lambda hook, eps, bias: lrp.Gamma(
        float(_read(hook, "gamma", [hook.param_modifiers[0].modifier])), eps, bias=bias
    ),
    "ZBox": _box,
    "WSquare": lambda hook, eps, bias: lrp.WSquare(eps, bias=bias),
    "Flat": lambda hook, eps, bias: lrp.Flat(eps),
}

__all__ = ["BatchNorm", "UnknownHookError", "convert", "of_assigned", "rule_of", "typed"]
