"""The settings of a run: every option is stated once, in :mod:`isnet.config.groups`."""

from isnet.config.distill import DistillConfig
from isnet.config.groups import (
    AUTO,
    STANDARD,
    FilesConfig,
    ImagesConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from isnet.config.recipes import RECIPES, Recipe, find_recipe, recipe_text
from isnet.config.run import DATA_KINDS, FROM_RUN, GROUPS, NOTES, DataSettings, RunConfig, changed, flag, require_use
from isnet.config.training import TrainConfig

__all__ = [
    "AUTO",
    "DATA_KINDS",
    "FROM_RUN",
    "GROUPS",
    "NOTES",
    "RECIPES",
    "STANDARD",
    "DataSettings",
    "DistillConfig",
    "FilesConfig",
    "ImagesConfig",
    "LossConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "Recipe",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "changed",
    "find_recipe",
    "flag",
    "recipe_text",
    "require_use",
]
