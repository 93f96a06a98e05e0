"""Weights that FSDP2 (``torch.distributed.fsdp.fully_shard``) frees once a module has run, and a relevance pass reads again.

FSDP gathers the weights of a module ahead of its forward pass and, with ``reshard_after_forward``, frees their storage behind it; the
tensors stay the same objects, whose storage comes back at the next gathering. So the relevance pass gathers what has been freed, and frees
it again. Its results get the hook that FSDP puts on the outputs of a module: the first gradient that arrives there gathers the weights for
backward, and makes FSDP reduce gradients in the end, even if none reaches the model's output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.registry import leaves


def refuse_unreadable(model: nn.Module, static: bool) -> None:
    """Raise for weights that a recording cannot read.

    Args:
        model: to be recorded.
        static: whether its calls are to be run again without its modules.

    Raises:
        ValueError: calls would be run again without the hooks that gather weights, ``FullyShardedDataParallel`` is a part of the model, or
            a module around it shards its weights and is not running.
    """
    fsdp = _fsdp()
    if fsdp is None:
        return
    gathered: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, fsdp.FullyShardedDataParallel):
            raise ValueError(
                f"{_name(model, module)}: FullyShardedDataParallel inside the model frees weights that the relevance pass reads; use "
                "torch.distributed.fsdp.fully_shard there, or put FullyShardedDataParallel around the ISNet as a whole"
            )
        if isinstance(module, fsdp.FSDPModule):
            if static:
                raise ValueError(
                    f"static: {_name(model, module)} is sharded by fully_shard, whose hooks gather its weights in each call, and "
                    "noted calls are run without hooks; leave `static` out"
                )
            gathered.update(module.modules())
    for name, parameter in model.named_parameters():
        if _is_shard(parameter) and model.get_submodule(name.rpartition(".")[0]) not in gathered:
            raise ValueError(
                f"{name} is a shard (DTensor), which only the sharded module around this model gathers; call that module, or its "
                "unshard() first"
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` has sharded the model or a part of it."""
    return bool(_sharded(model))


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """In this context the weights that its modules have freed are there."""
    freed = [module for module in _sharded(model) if any(map(_is_shard, _own_parameters(module)))]
    try:
        for module in freed:
            module.unshard()
        yield
    finally:
        for module in freed:
            module.reshard()


def gather_in_backward(model: nn.Module, relevance: Any) -> None:
    """Let gradients of relevance, in any nesting of tensors, find the weights that the pass through ``model`` has read."""
    sharded = _sharded(model)
    for tensor in leaves(relevance) if sharded else ():
        for module in sharded if tensor.requires_grad else ():
            tensor.register_hook(module._get_fsdp_state()._pre_backward)


def marks_post_backward() -> bool:
    """Whether FSDP is just putting the mark on a module's inputs by which it knows in backward that the module is through.

    They are the same values under new names; a node of their own would part a convolution from its batch norm in another such module.
    """
    frame: Any = None if _fsdp() is None else sys._getframe(1)
    for _ in range(5):
        if frame is None or frame.f_code.co_name == "_register_post_backward_hook":
            break
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_register_post_backward_hook"


def _fsdp() -> Any:
    """PyTorch's module, if it can be in use: None without its import or without processes."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return sys.modules.get("torch.distributed.fsdp")


def _name(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part) or "(model)"


def _sharded(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called with, from the outside in."""
    fsdp = _fsdp()
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _own_parameters(module: Any) -> Iterator[nn.Parameter]:
    """Those that are gathered with this module."""
    inside = {part for other in _sharded(module) if other is not module for part in other.modules()}
    for part in module.modules():
        if part not in inside:
            yield from part.parameters(recurse=False)


def _is_shard(tensor: Tensor) -> bool:
    distributed: Any = sys.modules["torch.distributed.tensor"]
    return isinstance(tensor, distributed.DTensor)
