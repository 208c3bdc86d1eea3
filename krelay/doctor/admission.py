"""Admission: have the API server judge the agent's Job and its pod, without creating them.

A server-side dry run passes Pod Security, quota, LimitRange and policies. Most of these judge pods
only, and a Job is accepted whose pod is not. So the pod is tried as well.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from krelay.doctor.finding import Finding, failed, ok, warning
from krelay.errors import AccessDeniedError, ClusterError, NotFoundError, UnreachableError
from krelay.model import GroupSpec
from krelay.supervisor.explain import setting_of
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.cluster.api import Api

Object = Mapping[str, Any]

_DRY_RUN = {"dryRun": "All"}


async def admission(api: Api, spec: GroupSpec) -> list[Finding]:
    """Try the agent of `spec` where it would go.

    Raises:
        ConfigError: a patch does not fit.
        ClusterError: no namespace takes the Job, or the API server does not answer.
    """
    refusals: list[ClusterError] = []
    for place in dict.fromkeys((spec.namespace or api.namespace, *spec.fallbacks)):
        manifest, dropped = await in_thread(
            functools.partial(_manifest, spec, place), UnreachableError
        )
        try:
            found = await _try(api, manifest)
        except (AccessDeniedError, NotFoundError) as exc:
            refusals.append(exc)
            continue
        return [found, *(warning("admission", text) for text in dropped)]
    raise refusals[0]


def _manifest(spec: GroupSpec, place: str) -> tuple[dict[str, Any], list[str]]:
    from krelay.cluster.agent_job import job_manifest

    return job_manifest(
        spec.agent,
        namespace=place,
        key_sha256="0" * 64,
        connect_timeout=spec.connect_timeout,
        session=spec.session,
        run=secrets.token_hex(4) if spec.agent.replicas > 1 else "",
    )


async def _try(api: Api, job: dict[str, Any]) -> Finding:
    """Raises AccessDeniedError or NotFoundError if the Job may not be created there."""
    from krelay.cluster.agent_lifecycle import admission_refusal
    from krelay.cluster.api import collection

    place = str(job["metadata"]["namespace"])
    tried = "the agent's Job"
    try:
        await api.create(collection("batch/v1", "jobs", place), job, **_DRY_RUN)
        tried = "its pod"
        await api.create(collection("v1", "pods", place), _pod(job), **_DRY_RUN)
    except (AccessDeniedError, NotFoundError) as exc:
        if tried == "its pod" and isinstance(exc, AccessDeniedError):
            text = f'namespace "{place}" takes the agent\'s Job; its pod was not tried'
            return ok("admission", f"{text} (no right to create pods)", namespace=place, pod=False)
        raise
    except ClusterError as exc:
        found = admission_refusal(exc, job)
        if found is None:
            raise
        hint = found.hint
        if found.settings:
            hint = f"{hint}: {setting_of(found.settings, flags=False)}"
        return failed(
            "admission",
            f'namespace "{place}": {found.reason}',
            hint,
            exit_code=ClusterError.exit_code,
            namespace=place,
        )
    text = f'namespace "{place}" takes the agent\'s Job and its pod'
    return ok("admission", text, namespace=place, pod=True)


def _pod(job: Object) -> dict[str, Any]:
    """Return the pod that a Job's controller would create."""
    template = job["spec"]["template"]
    head = {"generateName": "krelay-server-", "namespace": job["metadata"]["namespace"]}
    metadata = {**template.get("metadata", {}), **head}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


# -- the image -------------------------------------------------------------------------------------

_NODES = 100
"""Nodes whose images the doctor reads; each node lists at most 50."""


async def image(api: Api, name: str) -> Finding:
    """Say whether a node has the agent's image already. Raises ClusterError."""
    try:
        found = await api.get("/api/v1/nodes", limit=str(_NODES))
    except AccessDeniedError:
        return ok("image", f"{name} (no right to see which nodes have it)", image=name)
    nodes = [node for node in found.get("items") or () if isinstance(node, dict)]
    wanted = full_name(name)
    having = sum(wanted in _images(node) for node in nodes)
    details: dict[str, Any] = {"image": name, "nodes": len(nodes), "nodes_with_image": having}
    if having:
        return ok("image", f"{name} is on {having} of {len(nodes)} nodes", **details)
    text = f"{name} is on none of {len(nodes)} nodes, as far as they say"
    hint = "the first start pulls it; if nodes cannot, set agent.image to one that they can pull"
    return warning("image", text, hint, **details)


def full_name(name: str) -> str:
    """Return an image's name with registry and tag, as a node lists it."""
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        path = name if slash else f"library/{name}"
        host, rest = "docker.io", path
    tagged = "@" in rest or ":" in rest.rpartition("/")[2]
    return f"{host}/{rest}" if tagged else f"{host}/{rest}:latest"


def _images(node: Object) -> set[str]:
    status = node.get("status")
    images = status.get("images") if isinstance(status, dict) else None
    return {
        full_name(name)
        for image in images or ()
        if isinstance(image, dict)
        for name in image.get("names") or ()
        if isinstance(name, str)
    }
