"""``python -m isnet.experiments``: makes the tables of the pages in docs from the cells in docs/results."""

import sys
from pathlib import Path

from isnet._files import write_text
from isnet.experiments.results import current_pages

if __name__ == "__main__":
    try:
        pages = current_pages(Path("docs"))  # of the repository, in whose root this is called
        if not pages:
            raise ValueError("docs: no page here has a place for results; call this in the root of the repository")
        for page, text in pages.items():
            write_text(page, text)
    except (ValueError, OSError) as error:
        sys.exit(f"isnet.experiments: {error}")
