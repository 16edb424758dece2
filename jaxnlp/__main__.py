"""`python -m jaxnlp` is the program `jaxnlp`."""

import sys

from jaxnlp.cli import main

if __name__ == "__main__":
    sys.exit(main())
