"""MLflow: its own environment variables (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ...) apply."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from isnet.loggers.base import Logger, Names, Outcome, RunInfo

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LOCAL = ("sqlite:///", "file:", "/")
_BATCH = 100  # parameters in one call
_LONGEST = 6000  # characters of a parameter


class MLflow(Logger):
    """A run in MLflow's store: a server, or by default ``mlflow.db`` and ``mlruns`` in the current folder."""

    package = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""
        self._names = Names(r"[^/\w.\- :]")

    def start(self, run: RunInfo, kept: Mapping[str, str] | None) -> dict[str, str]:
        import mlflow

        uri, state = mlflow.get_tracking_uri(), {}
        if (
            not mlflow.is_tracking_uri_set()
        ):  # then it follows the current folder, which may be another one when resumed
            uri = state["uri"] = (kept or {}).get("uri", uri)
            if not uri.startswith(_LOCAL):  # a folder of somebody else's must not choose whom a run is sent to
                raise ValueError(f"expected a store in files, got {uri!r}; name a server by MLFLOW_TRACKING_URI")
        # A client of our own: mlflow.start_run would take over a run that the caller has open.
        self._client = mlflow.MlflowClient(uri)
        if kept is None:
            self._id = self._client.create_run(self._experiment(), run_name=run.name).info.run_id
        else:
            self._id = kept["run"]
            self._client.update_run(self._id, status="RUNNING")
        self._options(run.options)
        return {**state, "run": self._id}

    def _experiment(self) -> str:
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "isnet")
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _options(self, options: Mapping[str, Any]) -> None:
        """Logs options as parameters; one that a resumed run has changed, which a parameter cannot, as a tag."""
        from mlflow.entities import Param

        wanted = {self._names(name): str(value)[:_LONGEST] for name, value in options.items()}
        there = self._client.get_run(self._id).data.params
        new = [Param(name, value) for name, value in wanted.items() if name not in there]
        for first in range(0, len(new), _BATCH):
            self._client.log_batch(self._id, params=new[first : first + _BATCH])
        for name, value in wanted.items():
            if there.get(name, value) != value:
                self._client.set_tag(self._id, f"resumed.{name}", value)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, [Metric(self._names(name), value, now, step) for name, value in values.items()]
        )

    def picture(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        self._client.log_image(self._id, pixels, key=self._names(name), step=step)

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._id, _STATUS[outcome])
