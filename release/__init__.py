"""Build and try what a release publishes: `make release`, `make pyz`, `make installs`.

Nothing here is part of krelay. Publishing itself is .github/workflows/release.yml.
"""

from __future__ import annotations
