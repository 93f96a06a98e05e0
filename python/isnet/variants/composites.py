"""The rules of the ISNet as composites of their own, for :class:`lrpkernels.LRP`."""

from __future__ import annotations

from typing import Any

import lrpkernels as lrp
from isnet.variants.base import first_rule


def ISNetComposite(eps: float = 1e-2, low: Any = 0.0, high: Any = 1.0) -> lrp.Composite:
    """What ISNet trains through: epsilon in the form of LRP-Flex, z^B at the input. Source: arXiv 2401.08409."""
    return lrp.Composite(first=first_rule(eps, (low, high)), default=lrp.Epsilon(eps))


def ISNetDualComposite(eps: float = 1e-2, low: Any = 0.0, high: Any = 1.0) -> lrp.Composite:
    """z+ everywhere, z^B at the input: the rules of the Dual ISNet's z+ map, started from any target. Source: arXiv 2401.08409."""
    return lrp.Composite(first=first_rule(eps, (low, high)), default=lrp.ZPlus(eps, detach_bias=True))
