"""`krelay rbac`: the least rights that a file needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from krelay.cli.output import note, say
from krelay.config.dump import documents
from krelay.config.selection import Selection
from krelay.errors import CredentialsError

_GROUP = "rbac.authorization.k8s.io"


def subjects(
    users: Sequence[str], groups: Sequence[str], accounts: Sequence[str]
) -> list[dict[str, str]]:
    """Who gets the rights; an account is `NAMESPACE:NAME`, as kubectl writes it."""
    found = [{"kind": "User", "apiGroup": _GROUP, "name": name} for name in users]
    found += [{"kind": "Group", "apiGroup": _GROUP, "name": name} for name in groups]
    for account in accounts:
        namespace, _, name = account.rpartition(":")
        found.append({"kind": "ServiceAccount", "namespace": namespace or "default", "name": name})
    return found


def run(selection: Selection, given: Sequence[dict[str, str]], *, optional: bool) -> int:
    """Print the Roles, and their bindings for the subjects that are given; the exit code.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is wrong.
    """
    from krelay.cluster.auth.kubeconfig import load
    from krelay.cluster.rbac import roles

    config = selection.load()

    @functools.cache
    def namespace_of(context: str | None) -> str:
        try:
            return load(context).namespace
        except CredentialsError as exc:
            note(f"{exc}; the namespace `default` is assumed")
            return "default"

    found: dict[str | None, list[Any]] = roles(
        config, namespace_of, subjects=given, optional=optional
    )
    for context, wanted in found.items():
        if len(found) > 1:
            say(f"# context {context or '(the current one)'}")
        say(documents(wanted).rstrip() if wanted else "# no rights are needed")
    return 0
