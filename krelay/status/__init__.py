"""What is true now, and who may ask: the HTTP interface of a running krelay, on a unix socket."""

from __future__ import annotations
