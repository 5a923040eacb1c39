"""Entry point of `python -m trainenv`."""

import sys

from trainenv.cli import main

if __name__ == "__main__":
    sys.exit(main())
