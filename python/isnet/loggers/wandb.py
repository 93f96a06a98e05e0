"""Weights & Biases: its own environment variables (``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY``, ...) apply."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from isnet.loggers.base import Logger, Outcome, RunInfo

FOLDER = "wandb"  # of a run, unless WANDB_DIR names another place
_STEP = "global_step"


class WandB(Logger):
    """A run of Weights & Biases; with ``WANDB_MODE=offline`` in files that ``wandb sync`` sends later."""

    package = "wandb"

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: RunInfo, kept: Mapping[str, str] | None) -> dict[str, str]:
        import wandb

        name = (kept or {}).get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "isnet"),
            name=os.environ.get("WANDB_NAME", run.name),
            id=name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            reinit="create_new",  # a run that the caller has open is not ours
            settings=wandb.Settings(console="off", quiet=True),
        )
        self._run.config.update(dict(run.options), allow_val_change=True)
        # wandb's own counter only rises: steps that a resumed run takes again would be lost.
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)
        return {"id": name}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, _STEP: step})

    def picture(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(pixels), _STEP: step})

    def scores(self, values: Mapping[str, float], step: int) -> None:
        self._run.summary.update(dict(values))

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
