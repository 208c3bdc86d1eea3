"""`python -m krelay`."""

from __future__ import annotations

import sys

from krelay.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
