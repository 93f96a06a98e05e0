"""Checkpoints and weights as safetensors files, which hold tensors and JSON: loading one runs no code.

A checkpoint has all that a training needs to go on, in one file, renamed into place, so that it is either whole or absent. A file of
weights has the model's state alone, under the names of its own ``state_dict``. What is read is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from isnet._files import atomic_path, parse_json

_FORMAT = "isnet-checkpoint-2"
_NAMED = 3  # tensors in an error
_REMEMBERED = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.SGD: {"momentum_buffer"}}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model or the settings; the message names the file."""


@dataclass
class Checkpoint:
    """The state of a training run between two steps.

    Attributes:
        step: Optimizer steps done.
        model: The model's state_dict, on the CPU.
        optimizer: The optimizer's state_dict, or None for a model alone.
        settings: JSON values kept with it, such as the configuration.
        ema: State_dict of the weights' moving average, if there is one.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Optimizer(_Strict):
    scalars: dict[str, dict[str, float | None]]
    param_groups: list[dict[str, Any]]


class _Header(_Strict):
    step: NonNegativeInt
    settings: dict[str, Any]
    optimizer: _Optimizer | None = None


class _Note(_Strict):
    step: NonNegativeInt
    config: dict[str, Any]
    averaged: bool


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes ``checkpoint`` to ``path``, atomically.

    Raises:
        TypeError: the optimizer's state holds something that is neither a tensor nor a JSON value.
    """
    tensors = {f"model.{name}": _dense(value) for name, value in checkpoint.model.items()}
    tensors |= {f"ema.{name}": _dense(value) for name, value in (checkpoint.ema or {}).items()}
    header: dict[str, Any] = {"step": checkpoint.step, "settings": checkpoint.settings}
    if checkpoint.optimizer is not None:
        scalars: dict[str, dict[str, Any]] = {}
        for index, state in checkpoint.optimizer["state"].items():
            scalars[str(index)] = {}
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = _dense(value)
                else:
                    scalars[str(index)][name] = value
        header["optimizer"] = {"scalars": scalars, "param_groups": checkpoint.optimizer["param_groups"]}
    _save(path, tensors, {"format": _FORMAT, "state": json.dumps(header)})


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a whole checkpoint of this format.
    """
    with _opened(path) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    model, ema = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "ema.")
    )
    optimizer = None
    if header.optimizer is not None:
        try:
            state: dict[int, dict[str, Any]] = {int(i): dict(found) for i, found in header.optimizer.scalars.items()}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".", 2)
                    state[int(index)][key] = value
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: no state of an optimizer ({error})") from error
        optimizer = {"state": state, "param_groups": header.optimizer.param_groups}
    return Checkpoint(header.step, model, optimizer, header.settings, ema or None)


def checkpoint_header(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
    """Steps done and settings of a checkpoint; raises as :func:`load_checkpoint` does, but reads no tensor."""
    with _opened(path) as file:
        header = _header(file, path)
    return header.step, header.settings


def save_weights(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], *, step: int, config: Mapping[str, Any], averaged: bool
) -> None:
    """Writes a model's state alone, under its own names, atomically.

    ``safetensors.torch.load_file`` and ``load_state_dict`` are all that is needed to use it.

    Args:
        path: Where to.
        state: The model's state_dict.
        step: Optimizer steps done.
        config: Of the training, as JSON values; both are kept in the file's header.
        averaged: Whether these are moving averages of the weights.
    """
    note = json.dumps({"step": step, "config": config, "averaged": averaged})
    _save(path, {name: _dense(value) for name, value in state.items()}, {"format": "pt", "isnet": note})


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_weights` wrote: state_dict, on the CPU, and ``{"step", "config", "averaged"}``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a whole file of this kind.
    """
    with _opened(path) as file:
        note = _parsed(_Note, (file.metadata() or {}).get("isnet"), path)
        return {name: file.get_tensor(name) for name in file.keys()}, note.model_dump()  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The open file."""
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise CheckpointError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'device'}")
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def _header(file: Any, path: str | os.PathLike[str]) -> _Header:
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: expected format {_FORMAT}, got {metadata.get('format')}")
    return _parsed(_Header, metadata.get("state"), path)


def _parsed(kind: type[Any], text: str | None, path: str | os.PathLike[str]) -> Any:
    if text is None:
        raise CheckpointError(f"{path}: its header says nothing of a training")
    return checked(kind, _json(text, path), f"{path}: its header")


def _json(text: str, path: str | os.PathLike[str]) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its header is no JSON ({error})") from error


def checked(kind: type[Any], values: Any, where: str) -> Any:
    """``values`` as the pydantic model ``kind``.

    Raises:
        CheckpointError: they do not fit; the text begins with ``where`` and names the first place.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        got = " ".join(repr(first["input"]).split())
        raise CheckpointError(f"{where}: {place}: {first['msg']}, got {got[:60]}") from error


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Loads a state_dict into ``model``; unlike PyTorch's own loading it converts no number.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ, or a number is not one; ``path`` is named in the message.
    """
    expected = model.state_dict()
    troubles = _some("lacks", [name for name in expected if name not in state])
    troubles += _some("has, unlike the model,", [name for name in state if name not in expected])
    for name in expected.keys() & state.keys():
        ours, theirs = expected[name], state[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            troubles.append(f"{name}: expected {_kind(ours)}, got {_kind(theirs)}")
        elif theirs.is_floating_point() and bool(theirs.isnan().any()):
            troubles.append(f"{name}: not a number")
    if troubles:
        more = f"; and {len(troubles) - _NAMED} more" if len(troubles) > _NAMED else ""
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(troubles[:_NAMED])}{more}")
    model.load_state_dict(state)


def restore_tensors(
    state: Checkpoint,
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: nn.Module | None,
) -> None:
    """Loads the tensors of a checkpoint; ``averaged`` gets the moving average, if there is one.

    Raises:
        CheckpointError: they do not fit, or some are missing.
    """
    if state.optimizer is None:
        raise CheckpointError(f"{path} has no optimizer state to resume from")
    if averaged is not None and state.ema is None:
        raise CheckpointError(f"{path} has no moving average of the weights to resume from")
    if averaged is not None and state.ema is not None:
        load_state(averaged, state.ema, path)
    load_state(model, state.model, path)
    load_optimizer_state(optimizer, state.optimizer, path, begun=state.step > 0)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], path: object, *, begun: bool = True
) -> None:
    """Loads what an optimizer remembers of each parameter; its settings stay as they are.

    Args:
        optimizer: SGD or AdamW.
        state: Its state_dict.
        path: Where it comes from, for errors.
        begun: Whether it has made a step.

    Raises:
        CheckpointError: numbers for other parameters, or of other shapes or kinds.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _REMEMBERED[type(optimizer)]
    if begun and not state["state"] and isinstance(optimizer, torch.optim.AdamW):
        raise CheckpointError(f"{path}: the optimizer's memory is missing")
    for index, found in state["state"].items():
        if not 0 <= index < len(parameters):
            raise CheckpointError(f"{path}: the optimizer has a parameter {index}, the model {len(parameters)}")
        parameter = parameters[index]
        if found and found.keys() != names:
            raise CheckpointError(
                f"{path}: expected {', '.join(sorted(names))} of the optimizer's parameter {index}, got {', '.join(sorted(found))}"
            )
        for name, value in found.items():
            if name == "step":
                good = isinstance(value, Tensor) and value.shape == () and bool(value.isfinite() & (value >= 0))
            elif value is None:
                good = True  # momentum of zero
            else:
                good = isinstance(value, Tensor) and value.shape == parameter.shape and value.dtype == parameter.dtype
                good = good and not bool(value.isnan().any())
            if not good:
                kind = _kind(value) if isinstance(value, Tensor) else repr(value)
                raise CheckpointError(f"{path}: {name} of the optimizer's parameter {index} cannot be used, got {kind}")
    try:
        optimizer.load_state_dict({"state": dict(state["state"]), "param_groups": groups})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no state of this optimizer ({error})") from error


def _some(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"it {what} {', '.join(names[:_NAMED])}{more}"] if names else []


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _save(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _dense(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses strided and shared memory."""
    return torch.clone(value.detach(), memory_format=torch.contiguous_format).cpu()
