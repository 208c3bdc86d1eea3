"""Doctor: examine what a krelay needs, from its file to the agent, and say what mends it.

`examine` yields a `Finding` for each check, in order, as soon as it is known.
"""

from __future__ import annotations

from krelay.doctor.examination import Source, examine, examine_targets
from krelay.doctor.finding import Finding, Status

__all__ = ["Finding", "Source", "Status", "examine", "examine_targets"]
