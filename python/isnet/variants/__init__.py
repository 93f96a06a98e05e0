"""What each ISNet variant explains: its targets and rules, one class in one file per variant, entered in one table."""

from isnet.variants.base import Explained, Form, Variant
from isnet.variants.composites import ISNetComposite, ISNetDualComposite
from isnet.variants.dual import Dual, PositiveEvidence
from isnet.variants.gradient_times_input import GradientTimesInput
from isnet.variants.original import Original
from isnet.variants.selective import Selective, selective_score
from isnet.variants.stochastic import Stochastic, stochastic_target

# By the names that ``ISNet(variant=)`` and ``isnet train --variant`` take.
VARIANTS: dict[str, type[Variant]] = {
    "selective": Selective,
    "stochastic": Stochastic,
    "original": Original,
    "dual": Dual,
    "gradient_times_input": GradientTimesInput,
}

__all__ = [
    "VARIANTS",
    "Dual",
    "Explained",
    "Form",
    "GradientTimesInput",
    "ISNetComposite",
    "ISNetDualComposite",
    "Original",
    "PositiveEvidence",
    "Selective",
    "Stochastic",
    "Variant",
    "selective_score",
    "stochastic_target",
]
