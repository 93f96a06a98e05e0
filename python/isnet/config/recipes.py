"""Recipes: named, versioned sets of defaults, which ``isnet train --recipe NAME`` puts in place of those of single options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isnet.config.option import near, options_of, to_json
from isnet.config.run import GROUPS, RunConfig


@dataclass(frozen=True)
class Recipe:
    """A set of defaults.

    Attributes:
        name: What ``--recipe`` takes.
        version: Changes whenever a value does, so that two runs of one recipe and version were asked for the same.
        summary: What it is good for, a sentence or two.
        options: Option -> value, of any group: those not listed keep their own defaults.
    """

    name: str
    version: int
    summary: str
    options: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name and version, as a run's settings keep them."""
        return f"{self.name} {self.version}"

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """Group -> option -> value, the form of a configuration file."""
        found: dict[str, dict[str, Any]] = {}
        for option, value in self.options.items():
            group = next(key for key, kind in GROUPS.items() if option in options_of(kind))
            found.setdefault(group, {})[option] = value
        return found


# Epochs and rates of both, as they were measured: docs/which_method.md.
_SWAPPED: Mapping[str, Any] = {
    "warmup": 12,
    "epochs": 28,
    "warmup_background": "swap",
    "keep_replacing": True,
    "lr_rampup": 2.0,
    "lr_after_warmup": 1.0,
    "lr_schedule": "cosine",
    "monitor": None,
}
_ALL = (
    Recipe(
        "best",
        1,
        "A Selective ISNet on swapped backgrounds throughout: hardly moved by the background, with a heatmap that shows it.",
        {"variant": "selective", **_SWAPPED, "p": 0.3, "share_goal": 0.03, "w_background": 10.0},
    ),
    Recipe(
        "swap",
        1,
        "A plain network on swapped backgrounds throughout: often a little better, at the plain cost, if no heatmap is needed.",
        {"variant": "standard", **_SWAPPED},
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def find_recipe(text: str) -> Recipe:
    """The recipe of a name, or of a name and a version as ``"best 1"``.

    Raises:
        ValueError: there is none of this name, or only another version.
    """
    name, _, version = text.partition(" ")
    if name not in RECIPES:
        raise ValueError(f"recipe: no recipe {text!r}{near(name, RECIPES)}")
    recipe = RECIPES[name]
    if version and text != recipe.title:
        raise ValueError(
            f"recipe: this version of isnet has {recipe.title!r}, got {text!r}; name {name!r} to take that one, or leave the recipe out"
        )
    return recipe


def recipe_text(config: RunConfig) -> str:
    """The recipe of a run, and which of its options were given other values: ``"best 1; set otherwise: loss.p=0.4"``; empty: none."""
    recipe = RECIPES.get(config.recipe.partition(" ")[0])
    if recipe is None or recipe.title != config.recipe:  # an older version's, whose values are not known any more
        return config.recipe
    given = [
        f"{key}.{name}={getattr(getattr(config, key), name)}"
        for key, options in recipe.values.items()
        for name, value in options.items()
        if hasattr(getattr(config, key), name) and to_json(getattr(getattr(config, key), name)) != to_json(value)
    ]
    return f"{recipe.title}; set otherwise: {', '.join(given)}" if given else recipe.title
