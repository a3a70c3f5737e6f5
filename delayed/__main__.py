"""``python -m delayed`` is the command line, like ``delayed``."""

from delayed.cli import main

if __name__ == "__main__":
    main()
