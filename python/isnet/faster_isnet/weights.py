"""Weights that the public FasterISNet code has trained, in a classifier or a run of isnet."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from isnet.config import RunConfig
from isnet.runs.build import build_model
from isnet.runs.folder import open_run, remove_run, require_room
from isnet.runs.lock import one_writer
from isnet.training.checkpoints import CheckpointError, save_weights
from isnet.training.loop import BEST_NAME

# Its wrappers put the classifier under one of these, a Lightning module and DistributedDataParallel add to them; below the second kind of
# names stand copies of the classifier's own parameters.
_COPIES = ("LRPBlock.", "ZbModule.")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file: a state dict, or a Lightning checkpoint with one in it. Runs no code from the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or one that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects beside its weights, which would run code when loaded; where it was written, save its state_dict "
            "alone: torch.save(torch.load(path)['state_dict'], 'weights.pt')"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of PyTorch ({error})") from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors, got {type(found).__name__}")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def convert_state_dict(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The entries of a state dict that are a classifier's, under the classifier's own names.

    The prefix is found from the names: none, ``model.`` (ISNetFlex), ``model.model.`` (ISNetFlexLgt), ``classifierDNN.`` (ISNetLgt),
    ``module.`` of DistributedDataParallel, and any other. A head behind dropout (``fc.1.weight``) is one without (``fc.weight``).

    Args:
        state: from the public code.
        model: the classifier that is to have the weights.

    Returns:
        A state dict that ``model.load_state_dict`` takes.

    Raises:
        ValueError: no prefix under which all parameters are found with their shapes, or tensors that have no place in the classifier.
    """
    own = model.state_dict()
    found = [
        (prefix, entries) for prefix in _prefixes(state, own) if (entries := _under(prefix, state, own)) is not None
    ]
    if not found:
        raise ValueError(_why_not(state, own))
    prefix, entries = min(found, key=lambda pair: (_is_copy(pair[0]), len(pair[0])))
    used = [t for t in entries.values() if t.numel()]
    for name, tensor in state.items():
        if _belongs(name, prefix, own) or _is_copy(name):
            continue
        if not any(t is tensor or (t.shape == tensor.shape and torch.equal(t, tensor)) for t in used):
            raise ValueError(
                f"state_dict: {name!r} of shape {tuple(tensor.shape)} has no place in {type(model).__name__}, which has the "
                f"entries under {prefix!r}; give the model that was trained"
            )
    return {name: entries.get(name, value) for name, value in own.items()}


def load_weights(model: nn.Module, checkpoint: str | os.PathLike[str] | Mapping[str, Tensor]) -> nn.Module:
    """A classifier with the weights of a checkpoint of the public code.

    Args:
        model: the same network; the public DenseNets are torchvision's with :func:`add_transition_relus`.
        checkpoint: a file, or a state dict.

    Returns:
        The model.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`read_checkpoint`.
        ValueError: see :func:`convert_state_dict`.
    """
    state = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    model.load_state_dict(convert_state_dict(state, model))
    return model


def save_run(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | Mapping[str, Tensor],
    config: RunConfig,
    *,
    overwrite: bool = False,
) -> Path:
    """A run folder with the weights of a checkpoint of the public code, for ``isnet evaluate`` and the other commands.

    Args:
        folder: the new run.
        checkpoint: a file, or a state dict.
        config: its settings: the data, the architecture and the ISNet.
        overwrite: replace the run that is there.

    Raises:
        FileExistsError: ``folder`` holds a run.
        FileNotFoundError, CheckpointError, ValueError: see :func:`load_weights`.
    """
    model = load_weights(build_model(config), checkpoint)
    folder = Path(folder)
    with one_writer(folder):
        require_room(folder, config, overwrite=overwrite)
        if overwrite:
            remove_run(folder)
        config = open_run(folder, config)
        save_weights(folder / BEST_NAME, model.state_dict(), step=0, config=config.identity(), averaged=False)
    return folder


def add_transition_relus(model: nn.Module) -> nn.Module:
    """A torchvision DenseNet as the public code has it: a ReLU behind the convolution of each transition.

    Its ImageNet weights load in both, their outputs differ.

    Raises:
        ValueError: a model without such transitions.
    """
    found = [
        (name, module) for name, module in model.named_modules() if {"norm", "conv", "pool"} <= set(module._modules)
    ]
    if not found:
        raise ValueError(
            f"model: expected a DenseNet with transitions (norm, relu, conv, pool), got {type(model).__name__}"
        )
    for _, module in found:
        if "relu2" not in module._modules:
            pool = module._modules.pop("pool")
            module.add_module("relu2", nn.ReLU())
            module.add_module("pool", pool)
    return model


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What may stand ahead of the classifier's names."""
    first = next((name for name in own if not name.endswith("num_batches_tracked")), "")
    return list(dict.fromkeys(n.removesuffix(first) for n in state if n == first or n.endswith(f".{first}")))


def _under(prefix: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The classifier's entries under a prefix; None: one is missing, or has another shape."""
    entries = {}
    for name, value in own.items():
        entry = state.get(prefix + name, state.get(prefix + _behind_dropout(name)))
        if entry is None and name.endswith("num_batches_tracked"):
            continue  # it plays no part in a forward pass
        if entry is None or entry.shape != value.shape:
            return None
        entries[name] = entry
    return entries


def _behind_dropout(name: str) -> str:
    """Its name in the public code where the head has dropout ahead."""
    head, _, parameter = name.rpartition(".")
    return f"{head}.1.{parameter}"


def _is_copy(name: str) -> bool:
    return any(part in name for part in _COPIES)


def _belongs(name: str, prefix: str, own: Mapping[str, Tensor]) -> bool:
    rest = name.removeprefix(prefix)
    return name.startswith(prefix) and (rest in own or any(rest == _behind_dropout(known) for known in own))


def _why_not(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Which parameter does not fit under the prefix that comes closest."""
    for prefix in _prefixes(state, own):
        for name, value in own.items():
            entry = state.get(prefix + name, state.get(prefix + _behind_dropout(name)))
            if entry is not None and entry.shape != value.shape:
                return (
                    f"state_dict: {prefix + name!r} has shape {tuple(entry.shape)}, the model's {name!r} {tuple(value.shape)}; give the "
                    "model that was trained, with its number of classes"
                )
            if entry is None and not name.endswith("num_batches_tracked"):
                return (
                    f"state_dict: no entry {prefix + name!r} for the model's {name!r}; give the model that was trained"
                )
    names = ", ".join(list(state)[:3])
    return f"state_dict: no entry ends in the model's {next(iter(own), '')!r}; it begins with {names}; give the model that was trained"
