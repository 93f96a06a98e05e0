"""Smaller cases that fail as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .case import Case, Rules
from .check import failure
from .formulas import RuleSpec
from .network import Network


def shrunk(case: Case) -> Case:
    """A smaller case that fails as well: fewer steps, one rule, evaluation mode."""
    while True:
        for candidate in _smaller(case):
            try:
                Network(candidate.plan)
            except (ValueError, RuntimeError):
                continue
            if failure(candidate) is not None:
                case = candidate
                break
        else:
            return case


def _smaller(case: Case) -> Iterator[Case]:
    plan, rules = case.plan, case.rules
    for k in range(len(plan.steps) - 1, -1, -1):
        shorter = plan.without(k)
        if shorter is not None:
            kept = tuple(
                (f"steps.{n - (n > k)}", spec)
                for n, spec in ((int(o.split(".")[1]), s) for o, s in rules.steps)
                if n != k
            )
            yield replace(case, plan=shorter, rules=replace(rules, steps=kept))
    if len(plan.steps) > 1:
        kept = tuple((name, spec) for name, spec in rules.steps if name != f"steps.{len(plan.steps) - 1}")
        yield replace(case, plan=replace(plan, steps=plan.steps[:-1]), rules=replace(rules, steps=kept))
    if rules.steps:
        yield replace(case, rules=replace(rules, steps=()))
    for n in range(len(rules.steps)):
        yield replace(case, rules=replace(rules, steps=rules.steps[:n] + rules.steps[n + 1 :]))
    if rules.first is not None:
        yield replace(case, rules=replace(rules, first=None))
    if rules.operations != Rules(rules.default).operations:
        yield replace(case, rules=replace(rules, operations=Rules(rules.default).operations))
    if rules.default != RuleSpec("Epsilon"):
        yield replace(case, rules=replace(rules, default=RuleSpec("Epsilon")))
    if plan.training:
        yield replace(case, plan=replace(plan, training=False))
    if plan.channels_last:
        yield replace(case, plan=replace(plan, channels_last=False))
    if plan.differentiable:
        yield replace(case, plan=replace(plan, differentiable=False))
    if not plan.nonnegative:
        yield replace(case, plan=replace(plan, nonnegative=True))
