"""Authentication: the server and the user that kubeconfig names, and proof of being that user."""

from __future__ import annotations
