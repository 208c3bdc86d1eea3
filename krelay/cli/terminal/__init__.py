"""What krelay shows at a terminal: the table of the forwards, painted in place."""

from __future__ import annotations
