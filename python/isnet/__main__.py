"""``python -m isnet``: the command line."""

from isnet.cli import main

if __name__ == "__main__":
    main()
