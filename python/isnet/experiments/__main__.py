"""``python -m isnet.experiments``: makes the tables of docs/experiments.md from the cells in docs/results."""

import sys
from pathlib import Path

from isnet._files import read_text, write_text
from isnet.experiments.results import with_tables

if __name__ == "__main__":
    page = Path("docs/experiments.md")  # of the repository, in whose root this is called
    try:
        write_text(page, with_tables(read_text(page), page.parent / "results"))
    except (ValueError, OSError) as error:
        sys.exit(f"isnet.experiments: {error}")
