"""Local: the faults that can be found without a request, for `krelay up`. It blocks."""

from __future__ import annotations

from collections.abc import Iterable

from krelay.cluster.auth.kubeconfig import Login
from krelay.doctor import login, machine, server
from krelay.doctor.finding import Finding, Status
from krelay.errors import CredentialsError
from krelay.model import Config


def faults(
    config: Config, logins: Iterable[Login], dates: Iterable[tuple[str, float]] = ()
) -> list[Finding]:
    """Return the faults of this machine, and of the credentials in kubeconfig, if there are any.

    `dates` are those of answers of API servers, each with the Unix time at which it came.
    """
    found = [machine.descriptors(config)]
    found += [server.clock(server.skew(date, received, received)) for date, received in dates]
    for one in logins:
        try:
            found += login.expiry(one)
        except CredentialsError:
            continue  # the start has said so
    return [one for one in found if one.status in (Status.WARNING, Status.FAILED)]
