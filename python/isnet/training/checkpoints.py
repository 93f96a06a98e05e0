"""Checkpoints: model and optimizer in one safetensors file, everything else as JSON in its header.

One file, renamed into place, so that a checkpoint is either whole or absent, and loading one runs no code.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isnet._files import atomic_path

_FORMAT = "isnet-checkpoint-1"


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
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "state": json.dumps(header)})


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a whole checkpoint of this format.
    """
    with _opened(path) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    model, ema = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "ema.")
    )
    optimizer = None
    if "optimizer" in header:
        state: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in header["optimizer"]["scalars"].items()
        }
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state[int(index)][key] = value
        optimizer = {"state": state, "param_groups": header["optimizer"]["param_groups"]}
    return Checkpoint(header["step"], model, optimizer, header["settings"], ema or None)


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """The optimizer steps done in a checkpoint; raises as :func:`load_checkpoint` does, but reads no tensor."""
    with _opened(path) as (_, header):
        return header["step"]


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its JSON header."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{path}: expected format {_FORMAT}, got {metadata.get('format')}")
            yield file, json.loads(metadata["state"])
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def load_model_state(
    model: nn.Module, checkpoint: Checkpoint, path: str | os.PathLike[str], *, averaged: bool = False
) -> None:
    """Loads ``checkpoint`` into ``model``.

    Args:
        model: The classifier.
        checkpoint: Its state.
        path: Where it comes from, for error messages.
        averaged: Load the moving average of the weights, if there is one.

    Raises:
        CheckpointError: names or shapes differ; ``path`` is named in the message.
    """
    try:
        model.load_state_dict(checkpoint.ema if averaged and checkpoint.ema is not None else checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {error}") from error


def _dense(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU: safetensors refuses strided and shared memory."""
    return torch.clone(value.detach(), memory_format=torch.contiguous_format).cpu()
