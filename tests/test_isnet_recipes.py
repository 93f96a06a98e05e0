"""Recipes: named, versioned defaults for the options that are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_isnet_cli import run, run_main
from test_isnet_own_images import SHORT, folder  # noqa: F401

from isnet.config import RECIPES, ImagesConfig, RunConfig, changed, find_recipe, recipe_text, require_use
from isnet.config import recipes as module
from isnet.config.recipes import Recipe
from isnet.runs import load_config, load_run

BEST = RECIPES["best"]


def asked(*arguments: object) -> RunConfig:
    """The settings of a command line."""
    import yaml

    return RunConfig.from_json(yaml.safe_load(run("train", *arguments, "--print-config")))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_a_recipe_sets_what_it_lists_and_nothing_else(recipe: Recipe) -> None:
    config = asked("--recipe", recipe.name)
    wanted = {(group, name): value for group, options in recipe.values.items() for name, value in options.items()}
    assert {name for _, name in wanted} == set(recipe.options)
    assert all(getattr(getattr(config, group), name) == value for (group, name), value in wanted.items())
    assert set(changed(config)) - {("data", "path")} <= set(wanted)
    require_use(config, list(wanted))  # none of them is idle
    assert config.recipe == recipe.title == recipe_text(config) == f"{recipe.name} {recipe.version}"


def test_what_the_user_gives_wins_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: best\nloss: {p: 0.25}\nschedule: {lr_after_warmup: 0.5}\n")
    typed = asked("--recipe", "best", "--p", "0.25", "schedule.lr_after_warmup=0.5")
    assert (
        asked("--config", file) == typed
        and typed.loss.p == 0.25
        and typed.loss.share_goal == BEST.options["share_goal"]
    )
    assert recipe_text(typed) == f"{BEST.title}; set otherwise: schedule.lr_after_warmup=0.5, loss.p=0.25"
    assert asked("--config", file, "--p", "0.125").loss.p == 0.125
    # A default that is typed is the user's choice as well.
    assert asked("--recipe", "best", "--w-background", "1").loss.w_background == 1
    pooled = asked("--recipe", "best", "--decay", "0.8", "--share-goal", "none").loss
    assert pooled.share_goal is None and pooled.d == 0.8
    # All options of a printed file are given; it names its recipe.
    printed = tmp_path / "printed.yaml"
    printed.write_text(
        run("train", "--recipe", "best", "--p", "0.25", "schedule.lr_after_warmup=0.5", "--print-config")
    )
    assert asked("--config", printed) == typed
    assert asked("--recipe", "best", "--variant", "standard").network.variant == "standard"
    assert asked().recipe == "" and recipe_text(asked()) == ""


def test_a_run_keeps_its_recipe_and_resumes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed, straight = tmp_path / "run", tmp_path / "straight"
    options = ["--data", folder, *SHORT, "--warmup", "1", "--schedule", "constant"]
    told = run("train", straight, "--recipe", "best", *options, "--epochs", "2")
    assert f"Recipe: {BEST.title}; set otherwise: " in told and "schedule.epochs=2" in told
    run("train", resumed, "--recipe", "best", *options, "--epochs", "1")
    assert (
        load_config(resumed).recipe == BEST.title and load_config(resumed).loss.share_goal == BEST.options["share_goal"]
    )
    run("train", resumed, "--resume", "--recipe", "best", "--epochs", "2")
    assert load_config(resumed) == load_config(straight)
    found, whole = load_run(resumed).model.state_dict(), load_run(straight).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert "set otherwise" in run("train", resumed, "--resume", "--dry-run")

    plain = tmp_path / "plain"
    run("train", plain, "--data", folder, *SHORT, "--variant", "standard")
    refused = run_main(monkeypatch, capsys, "train", plain, "--resume", "--recipe", "best")
    assert "was begun without a recipe and keeps to that; leave the recipe out" in refused
    monkeypatch.setitem(module.RECIPES, "best", Recipe("best", 99, "Another.", {}))  # type: ignore[arg-type]
    refused = run_main(monkeypatch, capsys, "train", resumed, "--resume", "--recipe", "best")
    assert f"was begun with the recipe {BEST.title!r}" in refused
    assert recipe_text(load_config(resumed)) == BEST.title  # the values of an older version are not known
    run("train", resumed, "--resume", "--epochs", "3")
    assert load_config(resumed).recipe == BEST.title


def test_unknown_recipes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    for arguments, text in (
        (["--recipe", "bset"], "isnet: --recipe: no recipe 'bset'; did you mean best?"),
        (["--recipe", ""], "isnet: --recipe: no recipe ''; there are best"),
        (
            ["--recipe", "best 0"],
            f"this version of isnet has {BEST.title!r}, got 'best 0'; name 'best' to take that one",
        ),
        (["--recipe", "best\n1"], r"no recipe 'best\n1'"),
        (
            ["--recipe", "best", "--decay", "0.8"],
            "--decay: to be used with an ISNet without a goal (--share-goal none)",
        ),
        (["--config", file], "run.yaml: recipe: no recipe 'rival'"),
        (["--config", file, "--recipe", "best", "--p", "2"], "--p: expected in [0, 1], got '2'"),
    ):
        file.write_text("recipe: rival\n")
        assert text in run_main(monkeypatch, capsys, "train", *arguments, "--print-config")
    file.write_text("recipe: [best]\n")
    assert "run.yaml: recipe: " in run_main(monkeypatch, capsys, "train", "--config", file, "--print-config")
    with pytest.raises(ValueError, match="no recipe 'nothing'"):
        find_recipe("nothing")


def test_recipes_are_listed() -> None:
    shown = run("recipes")
    for recipe in RECIPES.values():
        assert f"{recipe.title}: {recipe.summary}" in shown
        assert all(f".{name}=" in shown for name in recipe.options)


def test_settings_with_a_recipe_survive_json() -> None:
    config = RunConfig(data=ImagesConfig("images"), recipe="best 7")
    assert RunConfig.from_json(config.to_json()) == config
    assert "recipe" not in config.identity()  # a note: a run of the same options is the same run
