"""Training runs as folders: from settings to a trained, scored and reported network."""

from isnet.runs.build import build_criterion, build_isnet, build_model, build_network
from isnet.runs.data import RunData, load_data, load_run_data, run_data, settled
from isnet.runs.evaluate import evaluate_run
from isnet.runs.folder import CONFIG_NAME, Run, load_config, load_evaluation, load_run, require_same_run
from isnet.runs.train import branch_run, train_run, tune_run

__all__ = [
    "CONFIG_NAME",
    "Run",
    "RunData",
    "branch_run",
    "build_criterion",
    "build_isnet",
    "build_model",
    "build_network",
    "evaluate_run",
    "load_config",
    "load_data",
    "load_evaluation",
    "load_run",
    "load_run_data",
    "require_same_run",
    "run_data",
    "settled",
    "train_run",
    "tune_run",
]
