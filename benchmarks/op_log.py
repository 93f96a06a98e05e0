"""Every operation that a run sends to PyTorch's dispatcher, with its bytes and flops, and whether a CUDA graph could hold it.

Works on the ``meta`` device, where tensors have shapes and no data, so that steps of any size are counted without a GPU and without
memory: see :mod:`benchmarks.step_roofline` and tests/test_graph_capture.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lrpkernels.functional import Weights
from lrpkernels.tools.traffic import moved, tensors

# Their results, or the sizes of them, depend on data that the host has to wait for.
WAITING = {
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select", "aten.bincount",
    "aten._unique", "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.unique_dim_consecutive",
}  # fmt: skip
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("lrpkernels", "isnet", "benchmarks", "tests")


class Call(NamedTuple):
    """One operation.

    Attributes:
        op: "namespace.name.overload".
        sizes: of the tensors read and written.
        bytes: of all of them, each once; 0 for views.
        flops: of convolutions and matrix products, a multiply-add counted as two; 0 for all others.
    """

    op: str
    sizes: tuple[torch.Size, ...]
    bytes: int
    flops: int

    @property
    def name(self) -> str:
        """Without the overload."""
        return self.op.rsplit(".", 1)[0]


class Finding(NamedTuple):
    """Something that a CUDA graph cannot hold.

    Attributes:
        kind: "waits" (the host reads a result), "host copy" (from pageable memory) or "host work" (a replay would not repeat it).
        file, function: the innermost place in our code that requested it.
        op: the requested one.
    """

    kind: str
    file: str
    function: str
    op: str


class OpLog(TorchDispatchMode):
    """While active, notes every operation, backward passes included.

    Args:
        device: type of the device that the run is on; other tensors are the host's.

    Attributes:
        calls: in order.
        findings: what a CUDA graph could not hold, in order.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.calls: list[Call] = []
        self.findings: list[Finding] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = str(func)
        name = op.rsplit(".", 1)[0]
        inputs = tensors((args, kwargs))
        if name in WAITING:
            self._note("waits", name)
        if name in ("aten._local_scalar_dense", "aten.is_nonzero") and args[0].is_meta:
            return 1  # a meta tensor has no number; the checks that need one take any true value as a pass
        out = func(*args, **kwargs)
        outputs = tensors(out)
        self._look_at_devices(name, inputs, outputs)
        flops = _flops(func, args, kwargs, out)
        self.calls.append(Call(op, tuple(t.shape for t in (*inputs, *outputs)), moved(func, inputs, outputs), flops))
        return out

    def _look_at_devices(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if self.device == "cpu":
            return  # everything is on the host
        host = [t for t in (*inputs, *outputs) if t.device.type != self.device]
        if not host:
            return
        if len(host) == len(inputs) + len(outputs):
            self._note("host work", name)
        elif any(t.dim() for t in host) or name in (
            "aten._to_copy",
            "aten.copy_",
        ):  # other host scalars are kernel arguments
            self._note("host copy", name)

    def _note(self, kind: str, name: str) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path != Path(__file__) and path.is_relative_to(_ROOT):
                parts = [part for part in path.relative_to(_ROOT).parts if part != "python"]
                if parts[0] in _PACKAGES:
                    self.findings.append(Finding(kind, "/".join(parts), frame.f_code.co_name, name))
                    return
            frame = frame.f_back  # type: ignore[assignment]
        self.findings.append(Finding(kind, "", "", name))


def log(run: Callable[[], object], device: str = "meta") -> OpLog:
    """The operations of one run."""
    with OpLog(device) as found:
        run()
    return found


@contextlib.contextmanager
def meta_autocast() -> Iterator[None]:
    """``torch.autocast``, which the engine switches off in its relevance pass, does not know the meta device: here it accepts it."""
    original = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else original(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    count = flop_registry.get(func.overloadpacket)
    if count is not None:
        return int(count(*args, **kwargs, out_val=out))
    name = str(func)
    # Multiply-adds of a convolution: every weight meets every output position of every image once.
    if name.startswith("lrpkernels.conv_relevance"):
        multiplier, weight, parts = args[0], args[6], Weights(args[7])
        products = {Weights.SAME_SIGN: 2, Weights.OPPOSITE_SIGN: 2, Weights.BOX: 3}.get(parts, 1)
        return 2 * products * weight.numel() * multiplier.shape[0] * multiplier.shape[2:].numel()
    if name.startswith("lrpkernels.conv_apply"):
        return 2 * args[1].numel() * out.shape[0] * out.shape[2:].numel()
    if name.startswith("lrpkernels.conv_weight_gradient"):
        return 2 * out.numel() * args[0].shape[0] * args[0].shape[2:].numel()
    return 0
