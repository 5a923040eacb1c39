"""Entry point of `python -m trainenv`."""

import os
import sys

from trainenv.cli import main

if __name__ == "__main__":
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of torch.distributed may abort an interpreter that ends in the usual way.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
