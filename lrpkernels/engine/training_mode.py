"""What makes a heatmap of a model in training mode another one than that of the model that answers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn

from ..errors import InputWarning

_DROPS_PATHS = ("DropPath", "StochasticDepth")  # timm, torchvision


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts ``model`` into evaluation mode and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def warn_of_training_mode(model: nn.Module, stacklevel: int) -> bool:
    """Warn if dropout draws or batch norms use the statistics of the batch; True if the model was looked at: it is in training mode.

    Args:
        model: to be explained.
        stacklevel: as for :func:`warnings.warn`, of the caller.
    """
    if not model.training:  # what is in training mode inside of it is so on purpose
        return False
    found: dict[str, str] = {}  # by what they do, the first module of the kind
    for name, module in model.named_modules():
        effect = _effect(module) if module.training else None
        if effect is not None:
            found.setdefault(effect, f"{name or '(model)'} ({type(module).__name__}) {effect}")
    if found:
        warnings.warn(
            f"the model is in training mode: {'; '.join(found.values())}; call model.eval() to explain its answers (training through "
            "heatmaps may go on)",
            InputWarning,
            stacklevel=stacklevel + 1,
        )
    return True


def _effect(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "uses the statistics of this batch" if module.track_running_stats else None
    draws = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _DROPS_PATHS
    drops = getattr(module, "p", None) or getattr(module, "drop_prob", None)
    return "drops at random" if (draws and drops) or isinstance(module, nn.RReLU) else None
