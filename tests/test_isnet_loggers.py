"""The log of a run in TensorBoard, Weights & Biases and MLflow, without a network: numbers, pictures, resuming, failures."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from logged_runs import Memory, assert_weights, config_of, expected, memory, trained  # noqa: F401
from run_files import assert_same_file
from settings import train_config
from test_isnet_own_images import SHORT, folder, run  # noqa: F401
from test_isnet_training import Dying, KilledError, blobs

from isnet.loggers import Names, require_packages
from isnet.training.log import read_log
from isnet.training.tracking import STATE_NAME, Tracking


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of_wandb"))
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# ---- the three


def test_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = trained(config_of("tensorboard"), tmp_path / "run")
    with pytest.raises(KilledError):
        trained(config_of("tensorboard", epochs=4), tmp_path / "run", data=Dying(blobs(48), 60), resume=True)
    log = trained(config_of("tensorboard", epochs=4), tmp_path / "run", resume=True)
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    written = events.Scalars("step/loss")
    steps = [entry for entry in log if entry["kind"] == "step"]
    assert [event.step for event in written] == [entry["step"] for entry in steps]
    assert [event.value for event in written] == pytest.approx([entry["loss"] for entry in steps])
    assert [event.step for event in events.Images("heatmaps")] == [3, 6, 9, 12]
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("epoch/acc")] == ["epoch/accuracy.größe_x/a_b"]
    assert b"| train.batch_size | 16 |" in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    other = tmp_path / "elsewhere"
    other.mkdir()
    with pytest.raises(KilledError):
        trained(config_of("mlflow"), tmp_path / "run", data=Dying(blobs(48), 60))
    state = json.loads((tmp_path / "run" / STATE_NAME).read_text())["mlflow"]
    client = mlflow.MlflowClient(state["uri"])
    assert client.get_run(state["run"]).info.status == "FAILED"
    monkeypatch.chdir(other)  # where the default store would be another
    strange = {"mlflow": {"run": "1", "uri": "http://localhost:9", "entries": 0}}
    tracking = Tracking(("mlflow",), other, {})
    (other / STATE_NAME).write_text(json.dumps(strange))
    with pytest.warns(UserWarning, match="expected a store in files, got 'http://localhost:9'"):
        tracking.start([], resumed=True)
    (other / STATE_NAME).unlink()
    log = trained(config_of("mlflow", workers=1, epochs=3), tmp_path / "run", resume=True)
    assert not any(other.iterdir())
    found = client.get_run(state["run"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert (found.data.params["train.batch_size"], found.data.params["schedule.epochs"]) == ("16", "2")
    assert found.data.tags["resumed.schedule.epochs"] == "3" and found.data.tags["resumed.train.workers"] == "1"
    history = client.get_metric_history(state["run"], "step/loss")
    assert [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)] == [
        (entry["step"], pytest.approx(entry["loss"])) for entry in log if entry["kind"] == "step"
    ]
    assert "epoch/accuracy.größe_x/a_b" in found.data.metrics
    pictures = [file.path for file in client.list_artifacts(state["run"], "images") if file.path.endswith(".png")]
    assert len(pictures) == 3


def records(path: Path, awaited: str) -> bytes:
    """What is in a file of wandb's, once its service, which works on after ``finish``, has written what is awaited."""
    until = time.monotonic() + 60
    while awaited.encode() not in (found := _records(path)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _records(path: Path) -> bytes:
    """Blocks of 32 KiB, in which each piece has a header of 7 bytes that ends in its length and kind."""
    content, place, found = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        found, place = found + content[place + 7 : place + 7 + length], place + 7 + length
    return found


def test_wandb(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    log = trained(config_of("wandb"), tmp_path / "run")
    (first,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    name = json.loads((tmp_path / "run" / STATE_NAME).read_text())["wandb"]["id"]
    written = records(first / f"run-{name}.wandb", repr(log[-2]["loss"]))
    assert [key for key, _, _ in expected(log) if key.encode() not in written] == [] and b"train.batch_size" in written
    assert len(list((first / "files" / "media" / "images").glob("heatmaps_*.png"))) == 2
    mine = wandb.init(dir=tmp_path, settings=wandb.Settings(silent=True))
    log = trained(config_of("wandb", epochs=3), tmp_path / "run", resume=True)
    assert wandb.run is mine, "a run that the caller has open"
    mine.finish()
    (second,) = set((tmp_path / "run" / "wandb").glob("offline-run-*")) - {first}
    losses = {entry["step"]: f"{entry['loss']!r}".encode() for entry in log if entry["kind"] == "step"}
    later = records(second / f"run-{name}.wandb", losses[9].decode())
    assert losses[4] in written and losses[4] not in later and losses[9] in later


# ---- what all of them get


def test_each_entry_comes_once_whatever_happens(tmp_path: Path, memory: type[Memory]) -> None:
    config = config_of("memory", "memory", epochs=4, save_every=2)
    log = trained(config, tmp_path / "whole")
    (whole,) = memory.runs
    assert whole.values == expected(log) and whole.outcome == "finished" and whole.kept is None
    assert whole.run.name == "whole" and whole.run.options["files.loggers"] == ["memory", "memory"]
    assert [step for step, _ in whole.pictures] == [3, 6, 9, 12]
    memory.runs.clear()
    for die_at in (40, 60, 45):
        with pytest.raises(KilledError):
            trained(config, tmp_path / "cut", data=Dying(blobs(48), die_at), resume=True)
    log = trained(config, tmp_path / "cut", resume=True)
    assert [run.outcome for run in memory.runs] == ["failed"] * 3 + ["finished"]
    assert [run.kept for run in memory.runs] == [None, *[{"id": "one"}] * 3]
    together = {(name, step): value for run in memory.runs for name, step, value in run.values}
    for name, step, value in expected(log):
        if "seconds" not in name:
            assert together[name, step] == value
    assert_same_file(tmp_path / "whole" / "last.safetensors", tmp_path / "cut" / "last.safetensors")


@pytest.mark.parametrize("where", ["scalars", "picture", "close"])
def test_a_failing_logger_costs_a_warning_and_catches_up(tmp_path: Path, memory: type[Memory], where: str) -> None:
    plain = trained(config_of(), tmp_path / "plain")
    memory.broken.add(where)
    with pytest.warns(UserWarning) as caught:
        log = trained(config_of("memory", "tensorboard"), tmp_path / "run")
    told = [str(warning.message) for warning in caught if "logger memory" in str(warning.message)]
    assert told == [
        "logger memory failed and is left out from here on; training goes on (OSError: no space left ("
        + where
        + ") and more)"
    ]
    assert [entry.get("loss") for entry in log] == [entry.get("loss") for entry in plain]
    assert_weights(tmp_path / "plain", tmp_path / "run")
    memory.broken.clear()
    log = trained(config_of("memory", epochs=3), tmp_path / "run", resume=True)
    assert {value for run in memory.runs for value in run.values} == set(expected(log))
    assert len([value for run in memory.runs for value in run.values]) == len(expected(log))


def test_a_logger_that_cannot_start(tmp_path: Path, memory: type[Memory]) -> None:
    memory.broken.add("start")
    with pytest.raises(
        RuntimeError, match=r"^--logger memory: cannot be started \(OSError: no space left \(start\) and more\)$"
    ):
        trained(config_of("tensorboard", "memory"), tmp_path / "run")
    assert read_log(tmp_path / "run" / "log.jsonl") == []
    memory.broken.clear()
    trained(config_of("memory"), tmp_path / "run")
    memory.broken.add("start")
    with pytest.warns(UserWarning, match="logger memory failed"):
        assert len(trained(config_of("memory", epochs=3), tmp_path / "run", resume=True)) == 9
    memory.broken.clear()
    log = trained(config_of("memory", epochs=4), tmp_path / "run", resume=True)
    assert {value for run in memory.runs for value in getattr(run, "values", [])} == set(expected(log))


def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path, memory: type[Memory]) -> None:
    class Stopping(Dying):
        def __getitem__(self, index: int) -> Any:
            if len(self.seen) == 56:  # in the second epoch
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        trained(config_of("memory"), tmp_path, data=Stopping(blobs(48), 999))
    assert memory.runs[0].outcome == "stopped"
    log = trained(config_of("memory"), tmp_path, resume=True)
    assert memory.runs[0].values + memory.runs[1].values == expected(log)


def test_a_logger_that_comes_later_gets_what_was_before(tmp_path: Path, memory: type[Memory]) -> None:
    trained(config_of(), tmp_path)
    log = trained(config_of("memory", epochs=3), tmp_path, resume=True)
    assert memory.runs[0].values == expected(log)
    trained(config_of("memory"), tmp_path)  # begins again
    assert memory.runs[1].kept is None and len(memory.runs[1].values) < len(memory.runs[0].values)


@pytest.mark.parametrize(
    "state",
    [
        '{"memory": 3}',
        '{"memory": {"id": "a"}}',
        '{"memory": {"entries": -9}}',
        "[]",
        '{"memory": {"id": 2, "entries": 1}}',
        "{",
    ],
)
def test_a_damaged_note(tmp_path: Path, memory: type[Memory], state: str) -> None:
    trained(config_of("memory"), tmp_path)
    (tmp_path / STATE_NAME).write_text(state)
    with pytest.raises(ValueError, match=STATE_NAME):
        trained(config_of("memory"), tmp_path, resume=True)


def test_nothing_is_logged_without_a_folder_or_by_the_other_processes(memory: type[Memory]) -> None:
    trained(config_of("memory"), None)
    tracking = Tracking(("memory",), None, {})
    tracking.start([], resumed=False)
    tracking.add({"kind": "step", "step": 1, "loss": 1.0})
    tracking.close("finished")
    assert memory.runs == []


# ---- names, packages, the command


def test_names() -> None:
    names = Names(r"[^/\w.\- :]", 12)
    assert [names(name) for name in ("a b", "a*b", "a?b", "a*b", "/../x//y/", "..", "é:1")] == [
        *("a b", "a_b", "a_b_2", "a_b", "x/y", "_", "é:1")
    ]
    assert names("x" * 40) == "x" * 12 and names("x" * 41) == "xxxx_2"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"^--logger {name}: .* not installed: pip install {name}$"
    ) as caught:
        trained(config_of(name), tmp_path / "run")
    assert caught.value.name is None and not (tmp_path / "run").exists()
    empty = types.ModuleType(name)  # what Python makes of a folder of that name
    monkeypatch.setitem(sys.modules, name, empty)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        require_packages([name])


def test_options() -> None:
    with pytest.raises(ValueError, match=r"loggers: expected tensorboard or wandb or mlflow, got 'neptune'"):
        config_of("wandb", "neptune")
    for wrong in ("comet", ["wandb", 3], True):
        with pytest.raises(ValueError, match="loggers: expected"):
            train_config(loggers=wrong)
    assert train_config(loggers="wandb").files.loggers == ("wandb",)


def test_the_command_logs_the_scores_at_the_end(folder: Path, tmp_path: Path, memory: type[Memory]) -> None:
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--variant", "selective", "--warmup", 1, "--tune", 1,
        "--logger", "memory", "--logger", "tensorboard", "--log-every", 1)  # fmt: skip
    first, second, last = memory.runs  # warm-up, training, scores
    assert (first.run.name, second.run.options["network.variant"]) == ("run", "selective")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert first.values + second.values == expected(log)
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    final = {name: value for name, _, value in last.values}
    assert final["final/accuracy.test"] == stored["accuracy"]["test"]
    assert math.isfinite(final["final/background_attention.test"]) and final.keys() > {"final/accuracy.test"}
    assert {step for _, step, _ in last.values} == {log[-1]["step"]}
    assert not (tmp_path / "run" / "tuning" / "tensorboard").exists()
    assert os.fspath(folder) not in json.dumps(dict(first.run.options)), "where the data lie"
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--overwrite")
    assert not {"tensorboard", STATE_NAME} & {path.name for path in (tmp_path / "run").iterdir()}
