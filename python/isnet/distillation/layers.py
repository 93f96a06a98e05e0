"""Which hidden layers of two networks can be compared, and the layer that makes the logits."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isnet.explanation import evaluation_mode

Shape = tuple[int, ...]


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The outputs of modules by name, call by call, while the model runs; modules in the order in which they end."""
    found: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.setdefault(name, []).append(output)

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def map_shapes(model: nn.Module, images: Tensor) -> dict[str, Shape]:
    """The modules that run once and whose output has channels and more than one position, [B, C, ...] -> its shape without B."""
    names = [name for name, _ in model.named_modules() if name]
    with torch.no_grad(), evaluation_mode(model), watched(model, names) as outputs:
        model(images)
    return {
        name: tuple(found[0].shape[1:])
        for name, found in outputs.items()
        if len(found) == 1
        and found[0].dim() > 2
        and len(found[0]) == len(images)
        and found[0].shape[2:].numel() > 1
        and found[0].is_floating_point()
    }


def matching_layers(student: Mapping[str, Shape], teacher: Mapping[str, Shape]) -> list[str]:
    """The layers that ``layers="auto"`` compares: of the modules with one name and one shape in both, the last of each shape.

    In a network of stages these are the ends of the stages.

    Args:
        student, teacher: :func:`map_shapes` of both.

    Raises:
        ValueError: there is none.
    """
    last = {shape: name for name, shape in student.items() if teacher.get(name) == shape}
    if not last:
        shared = [name for name in student if name in teacher]
        why = (
            f"{shared[-1]} gives {list(student[shared[-1]])} in the student, {list(teacher[shared[-1]])} in the teacher"
            if shared
            else "no module has the same name in both"
        )
        raise ValueError(
            f'layers: "auto" finds no hidden map of the same name and shape in student and teacher ({why}); name pairs of layers, '
            "{student's: teacher's}, or give () for the input map alone"
        )
    return [name for name in student if last.get(student[name]) == name]


def require_layers(model: nn.Module, names: Sequence[str], whose: str) -> None:
    """Raises ValueError for names that no module of the model has."""
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
            raise ValueError(f"layers: the {whose} has no module {name!r}; near matches: {', '.join(near) or 'none'}")


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last ``nn.Linear`` of a model, by the order of its modules, and its name.

    Raises:
        ValueError: there is none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(f'head: {type(model).__name__} has no nn.Linear to copy; use head="free"')
    return found[-1]


def copy_head(student: nn.Module, teacher: nn.Module) -> None:
    """Gives the student the teacher's last layer, frozen.

    Raises:
        ValueError: the layers differ in shape.
    """
    (ours, mine), (theirs, other) = head_of(student), head_of(teacher)
    if mine.weight.shape != other.weight.shape or (mine.bias is None) != (other.bias is None):
        raise ValueError(
            f"head: the student's last layer {ours} {list(mine.weight.shape)} cannot be a copy of the teacher's {theirs} "
            f'{list(other.weight.shape)}; use head="free"'
        )
    mine.load_state_dict(copy.deepcopy(other.state_dict()))
    mine.requires_grad_(False)


def copy_weights(student: nn.Module, teacher: nn.Module) -> None:
    """Has the student start as the teacher.

    Raises:
        ValueError: they are not of one architecture.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    differs = next(
        (n for n in {**ours, **theirs} if n not in ours or n not in theirs or ours[n].shape != theirs[n].shape), None
    )
    if differs is not None:
        shapes = [list(state[differs].shape) if differs in state else "nothing" for state in (ours, theirs)]
        raise ValueError(
            f"start: the student cannot start as its teacher: {differs} is {shapes[0]} in the student, {shapes[1]} in the teacher; use "
            '"random"'
        )
    student.load_state_dict(theirs)
