"""Weights to begin with: from a file, under whatever prefix a training loop has given them, into a model whose head may differ."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_COUNTER = "num_batches_tracked"
_NAMED = 5  # of many parameters


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit the model; the text names the file."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU. Reading runs no code of the file.

    Args:
        path: safetensors, or PyTorch's own format (``.pt``, ``.pth``, ``.ckpt``, ``.bin``) with a state_dict, alone or as one entry
            (``state_dict``, ``model``, ...) of a checkpoint.

    Raises:
        WeightsError: no such file, or no weights in it.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"weights: {path} is a folder; name a file, best.safetensors of a run for example")
    if not path.is_file():
        raise WeightsError(f"weights: no file {path}")
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"weights: {path} is not a whole safetensors file ({error})") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights: {path} holds more than tensors and plain values, and loading it could run code; save model.state_dict() instead"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(f"weights: {path} cannot be read ({' '.join(str(error).split()) or 'empty'})") from error
    return _tensors(found, path)


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The innermost mapping from names to tensors."""
    while isinstance(found, Mapping):
        inner = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    state = (
        {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not state:
        raise WeightsError(f"weights: {path} holds no state_dict, but {type(found).__name__}")
    return state


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], where: str, num_classes: int, *, droppable: Sequence[str] = ()
) -> tuple[str, ...]:
    """Loads weights into a model of the same architecture, whose last layer may be for another number of classes.

    Prefixes that DistributedDataParallel, ``torch.compile``, Lightning modules and checkpoints put before the names are taken off.

    Args:
        model: Changed in place.
        state: Tensors by name.
        where: Their source, for errors.
        num_classes: Length of the model's logits. Parameters with that many rows, of which ``state`` has another number, are the
            head's: they stay as they are.
        droppable: Beginnings of names in ``state`` that the model may lack.

    Returns:
        The names of the model's parameters that stay as they are.

    Raises:
        WeightsError: anything else that does not fit.
    """
    own = model.state_dict()
    found = _unprefixed({name.replace("_orig_mod.", ""): value for name, value in state.items()}, own)
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER)]
    extra = [n for n in found if n not in own and not n.endswith(_COUNTER) and not n.startswith(tuple(droppable))]
    shapes = [name for name, value in own.items() if name in found and found[name].shape != value.shape]
    heads = {found[name].shape[0] for name in shapes if _is_head(own[name], found[name], num_classes)}
    wrong = shapes if len(heads) > 1 else [n for n in shapes if not _is_head(own[n], found[n], num_classes)]
    troubles = [
        *([f"it lacks {_some(missing)}"] if missing else []),
        *([f"the model has no {_some(extra)}"] if extra else []),
        *(
            [f"other shapes: {_some([f'{n} {list(found[n].shape)}, not {list(own[n].shape)}' for n in wrong])}"]
            if wrong
            else []
        ),
    ]
    if troubles:
        raise WeightsError(f"weights: {where} does not fit the model: {'; '.join(troubles)}")
    broken = [name for name in own if name in found and not bool(torch.isfinite(found[name]).all())]
    if broken:
        raise WeightsError(f"weights: {where} holds numbers that are not finite: {_some(broken)}")
    model.load_state_dict(
        {name: value for name, value in found.items() if name in own and name not in shapes}, strict=False
    )
    return tuple(shapes)


def _is_head(ours: Tensor, theirs: Tensor, num_classes: int) -> bool:
    """Whether the tensors differ in the number of classes alone."""
    if not ours.dim() or ours.dim() != theirs.dim():
        return False
    return ours.shape[0] == num_classes != theirs.shape[0] and ours.shape[1:] == theirs.shape[1:]


def _unprefixed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands under the prefix that makes most names the model's; with one, other entries are not the model's at all."""
    prefixes = {""}
    for name in list(own)[:3] + list(own)[-3:]:
        prefixes |= {key[: -len(name)] for key in state if key.endswith(f".{name}")}
    fits = {prefix: sum(f"{prefix}{name}" in state for name in own) for prefix in prefixes}
    best = max(sorted(prefixes, key=len), key=fits.__getitem__)
    return {key[len(best) :]: value for key, value in state.items() if key.startswith(best)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


class _Nothing(dict[str, Any]):
    """What a file holds that is not read: any key, and nothing below it."""

    def __missing__(self, key: str) -> Any:
        return _Nothing()

    def pop(self, *_: Any) -> Any:
        return _Nothing()

    def get(self, *_: Any) -> Any:
        return _Nothing()


def without_weights(build: Callable[[], ModelT]) -> ModelT:
    """A model that gets all of its state afterwards, from a constructor that may load weights: nothing is downloaded.

    Where that fails, as it does when a file of weights is gone, what reads weights gives nothing, and nothing is loaded.
    """

    def nothing(*_: Any, **__: Any) -> Any:
        return _Nothing()

    def loads(*_: Any, **__: Any) -> Any:
        return nn.modules.module._IncompatibleKeys([], [])

    offline = ((torch.hub, "load_state_dict_from_url", _refuse), (torch.hub, "download_url_to_file", _refuse))
    blind = (
        (torch.hub, "load_state_dict_from_url", nothing),
        (torch, "load", nothing),
        (safetensors.torch, "load_file", nothing),
        (nn.Module, "load_state_dict", loads),
    )
    try:
        with _replaced(offline):
            return build()
    except Exception as first:  # of a constructor that is not ours: errors of every kind
        try:
            with _replaced(blind):
                return build()
        except Exception:
            raise first from None


@contextlib.contextmanager
def _replaced(functions: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, function in functions:
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("a trained run downloads nothing")
