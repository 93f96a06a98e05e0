"""isnet recipes."""

from __future__ import annotations

import typer

from isnet._text import say
from isnet.config import RECIPES
from isnet.config.option import to_json

app = typer.Typer()


@app.command()
def recipes() -> None:
    """Lists what --recipe takes: sets of defaults for training, with their versions and values."""
    for recipe in RECIPES.values():
        say(f"{recipe.title}: {recipe.summary}")
        for key, options in recipe.values.items():
            for name, value in options.items():
                say(f"  {key}.{name}={to_json(value)}")
