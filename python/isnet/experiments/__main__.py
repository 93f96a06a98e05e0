"""``python -m isnet.experiments``: makes the tables of docs/experiments.md from the cells in docs/results."""

from pathlib import Path

from isnet._files import read_text, write_text
from isnet.experiments.results import with_tables

if __name__ == "__main__":
    page = Path("docs/experiments.md")
    write_text(page, with_tables(read_text(page), page.parent / "results"))
