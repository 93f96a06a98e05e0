"""``isnet`` and ``python -m isnet``: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; where packages of the extra isnet are missing, says so in one line."""
    try:
        from isnet.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("isnet", "lrpkernels"):
            raise
        sys.exit(f"isnet: the command line needs packages that are missing ({error}): pip install 'lrpkernels[isnet]'")
    run()


if __name__ == "__main__":
    main()
