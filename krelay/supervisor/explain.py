"""Explain: give an error of the cluster the hint that mends it, for the command that met it.

Code that talks to the cluster knows what was refused. Only the config knows the command line, which
the hint repeats.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from krelay.errors import AccessDeniedError, AgentError
from krelay.model import Config, Target, Via
from krelay.text import one_line
from krelay.wire.errors import ErrorCode

if TYPE_CHECKING:
    from krelay.cluster.api import Api


def explain_error(error: Exception, *, config: Config, context: str | None, api: Api) -> None:
    """Replace the hint of `error`, which the cluster of `context` caused, if there is a better one.

    A missing right gets the command that gives all rights of the config, and a pod that admission
    refuses gets the flag or the line of the file that makes it acceptable.
    """
    if isinstance(error, AccessDeniedError) and config.origin.words:
        command = rbac_command(config, context, api.namespace, error)
        error.hint = one_line(
            f"an administrator gives this run all rights with: {command} | kubectl apply -f -"
        )
    elif isinstance(error, AgentError) and error.settings:
        setting = setting_of(error.settings, flags=config.origin.flags)
        error.hint = one_line(f"{error.hint}: {setting}")


_LISTENS = "check the port, and that the program behind it has started"
_DIAL_HINTS = {
    ErrorCode.REFUSED: _LISTENS,
    ErrorCode.CONNECT_TIMEOUT: "check the address, and the NetworkPolicies of its namespace and of"
    " the agent's",
    ErrorCode.NO_SUCH_HOST: "check the name: the agent looks it up in the cluster",
    ErrorCode.RESOLVE_TIMEOUT: "the cluster's DNS gives no answer: look at its pods in kube-system",
    ErrorCode.UNREACHABLE: "the agent's node has no route to this address",
}


def dial_hint(code: ErrorCode | None, target: Target) -> str:
    """Return what may mend a dial to `target` that ended with `code`; empty if nothing is known."""
    hint = _DIAL_HINTS.get(code, "") if code is not None else ""
    if code is ErrorCode.REFUSED and target.may_go_direct and target.via is not Via.DIRECT:
        hint += "; `via: direct` also reaches a program that listens on 127.0.0.1 of its pod"
    return hint


def missing_hint(target: Target) -> str:
    """Return what may mend a target whose object or port does not exist."""
    where = f" -n {target.namespace}" if target.namespace else ""
    return f"check the name, the port and the namespace: kubectl get {target.kind}{where}"


def rbac_command(
    config: Config, context: str | None, namespace: str, error: AccessDeniedError
) -> str:
    """Return the `krelay rbac` that gives the refused user all rights that `config` needs.

    `namespace` is the context's own. The command names it, because an administrator's kubeconfig
    may have another.
    """
    from krelay.cluster.rbac import subject_option

    origin = config.origin
    words = ["krelay", "rbac", *origin.words]
    if len({target.context or config.context for target in config.targets}) > 1 and context:
        words += ["--context", context]
    default = origin.namespace or (None if config.namespace else namespace)
    agent = error.agent_namespace or config.agent.namespace
    if not origin.namespace and all(target.namespace for target in config.targets):
        # Only the agent may lack a namespace: `-n` would replace one of the file's `defaults`.
        agent, default = agent or default, None
    if default:
        words += ["-n", default]
    if agent and agent != (config.namespace or default):
        words += ["--agent-namespace", agent]
    return shlex.join([*words, *subject_option(error.user)])


def setting_of(settings: dict[str, Any], *, flags: bool) -> str:
    """Return a part of the file's `agent` as a line of the file, or as a flag of `kubectl relay`
    if `flags`."""
    from krelay.config.yaml_reader import flow

    if not flags:
        return f"in the file, agent: {flow(settings)}"
    if "image" in settings:
        return f"--server.image={shlex.quote(settings['image'])}"
    return f"--patch={shlex.quote(flow(_pod_patch(settings)))}"


def _pod_patch(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the patch of the pod that does what `settings` do."""
    from krelay.cluster.agent_job import NAME

    if "patches" in settings:
        patch: dict[str, Any] = settings["patches"][0]["patch"]
        return patch
    if "resources" in settings:
        return {"spec": {"containers": [{"name": NAME, "resources": settings["resources"]}]}}
    return {"metadata": settings}
