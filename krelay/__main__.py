"""`python -m krelay`."""

from __future__ import annotations

import sys

from krelay.cli.entry import krelay

if __name__ == "__main__":
    sys.exit(krelay())
