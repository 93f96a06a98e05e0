"""What this installation is made of."""

from ._version import __version__


def show_config() -> None:
    """Print the version."""
    print(__version__)
