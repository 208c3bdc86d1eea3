"""Diagnosis: why the agent does not run (yet), in the cluster's own words. Pure.

Problems show in three places: the Job's events (quota, Pod Security and any other admission,
which leave no pod), the pod's status (scheduling, image, exit), and the pod's events (mounts,
sandbox). Objects are as `krelay.cluster.objects` reads them.

What admission refuses has a remedy: a part of the file's `agent` that makes the pod acceptable.
Texts: plugin/pkg/admission (limitranger, resourcequota), pod-security-admission/policy, apiserver
pkg/admission/plugin/policy/validating; those of Kyverno, Gatekeeper and OpenShift's SCC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, inf
from typing import Any

from krelay.cluster.agent_job import NAME, RESTRICTED_CONTAINER, RESTRICTED_POD, UID
from krelay.cluster.objects import nested

Object = Mapping[str, Any]

PATIENCE = 3.5
"""Seconds for problems that may pass: a quota has room, an account is created."""

PATIENCE_BLIND = 30.0
"""Seconds without a pod if krelay may not read the events: the controller may just be slow."""

_MAX_LINE = 600
_MAX_SEARCHED = 4096


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of the agent's start.

    `code` names the state. A start that stays in it for `patience` seconds has failed (0: failed
    now, `inf`: a normal step of a start); one that `needs_node` may wait for it as long as the file
    says. `reason` is one line. `words` are the last log lines of a container that has ended.
    `settings` are a part of the file's `agent` with which the agent would start. `no_agent` is as
    in ClusterError.
    """

    code: str
    reason: str
    hint: str | None = None
    patience: float = inf
    words: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    no_agent: bool = False

    @property
    def line(self) -> str:
        """The reason with its hint."""
        return f"{self.reason}; hint: {self.hint}" if self.hint else self.reason

    @property
    def running(self) -> bool:
        """Whether the agent's container runs; only a tunnel shows whether the agent listens."""
        return self.code == "Running"

    @property
    def needs_node(self) -> bool:
        """Whether no node takes the pod; an autoscaler may add one."""
        return self.code == _NO_NODE


def diagnose(
    jobs: Collection[Object] | None,
    pods: Collection[Object],
    events: Collection[Object] | None,
    resources: Object | None = None,
) -> Diagnosis:
    """Judge a Job (`jobs` has one element or none) by itself, its pods, and their events; None
    stands for what krelay may not read. `resources` are those of the agent's container."""
    if pods:
        newest = max(pods, key=lambda pod: str(nested(pod, "metadata", "creationTimestamp")))
        return of_pod(newest, events or ())
    if jobs is not None:
        if not jobs:
            return Diagnosis("JobDeleted", "the agent's Job was deleted", patience=0)
        job = next(iter(jobs))
        if failed := _condition(job, "Failed", "True"):
            return Diagnosis("JobFailed", f"the agent's Job failed: {_why(failed)}", patience=0)
        if _condition(job, "Suspended", "True"):
            return Diagnosis("Suspended", "the agent's Job is suspended; a queue may hold it back")
    if events is None:
        return Diagnosis("NoPod", _NO_EVENTS, _EVENTS_HINT, PATIENCE_BLIND, no_agent=True)
    refusals = [event for event in events if event.get("reason") == "FailedCreate"]
    if refusals:
        return refusal(str(max(refusals, key=_time).get("message") or ""), resources or {})
    return Diagnosis("NoPod", "waiting for the Job's pod")


def of_pod(pod: Object, events: Collection[Object] = ()) -> Diagnosis:
    """Judge the agent's pod by its status and its events."""
    if ended := end_of(pod):
        return ended
    for status in _statuses(pod):
        if stuck := _stuck(status):
            return stuck
    if "running" in (nested(_server(pod), "state") or {}):
        return Diagnosis("Running", "the agent runs")
    if unscheduled := _condition(pod, "PodScheduled", "False"):
        reason = f"no node takes the agent's pod: {_line(unscheduled.get('message'))}"
        if unscheduled.get("reason") != "Unschedulable":
            return Diagnosis("Scheduling", reason)
        if scaling := _scaling(pod, events):
            reason += f"; the autoscaler: {scaling}"
        return Diagnosis(_NO_NODE, reason, _NODE_HINT)
    if not nested(pod, "spec", "nodeName"):
        return Diagnosis("Scheduling", "waiting for a node")
    return _starting(pod, events)


def end_of(pod: Object) -> Diagnosis | None:
    """Return why the pod has ended or is being deleted, or None."""
    name = nested(pod, "metadata", "name")
    if nested(pod, "metadata", "deletionTimestamp"):
        disruption = _condition(pod, "DisruptionTarget", "True")
        why = f": {_why(disruption)}" if disruption else ""
        return Diagnosis("Deleted", f"the agent's pod {name} is being deleted{why}", patience=0)
    status = nested(pod, "status") or {}
    over = status.get("phase") in ("Failed", "Succeeded")
    if over and status.get("reason"):  # Evicted, OutOfcpu, NodeAffinity, ...
        return Diagnosis("Ended", f"the agent's pod {name} ended: {_why(status)}", patience=0)
    ended = nested(_server(pod), "state", "terminated")
    if ended is None and over:
        ended = next(filter(None, (nested(s, "state", "terminated") for s in _statuses(pod))), {})
    return None if ended is None else _exit(ended)


_NO_EVENTS = "no pod appears for the agent's Job, and krelay may not read the events that say why"
_EVENTS_HINT = "a quota or Pod Security? With `list` and `watch` on events krelay can say"
_NO_NODE = "Unschedulable"
_SCALING = ("TriggeredScaleUp", "NotTriggerScaleUp", "FailedScaleUp")
"""Reasons of the cluster autoscaler's events."""
_NODE_HINT = (
    "agent.nodeSelector, agent.tolerations and agent.resources decide where it may run, and"
    " agent.startTimeout how long it may wait for a node"
)
_USER_HINT = "the cluster gives the agent no user id, and neither do agent.patches"
_IMAGE_HINT = "set another agent.image, or add imagePullSecrets by a patch"
_PYTHON_HINT = (
    "agent.image needs Python 3.11 or later as `python3`; if it contains the agent itself, set"
    " agent.injectSource to false"
)
_NO_AGENT = re.compile(
    r"""exec(?:utable file)?:? ["`']--idle-timeout"""  # runc, crun: no program takes the arguments
    r"|\b(?:unknown|unrecognized|invalid|illegal|bad) option\b.{0,20}-idle-timeout"
    r"|-idle-timeout\S{0,20}: (?:invalid|unrecognized) option"
    r"|\b(?:illegal option --|exec: --: invalid option)"  # an entrypoint's `exec "$@"`
    r"|No module named '?agent\b",
    re.IGNORECASE,
)
"""What is said for want of an agent in an image to which krelay sends none."""
_NO_AGENT_HINT = (
    "the image contains no agent; if it has Python 3.11 or later, set agent.injectSource to true,"
    " and krelay sends the agent"
)
_PULL = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_NO_ACCOUNT = "error looking up service account"
_FORBIDDEN = re.compile(r'^(?:Error creating: )?(?:(?:pods|jobs\.batch) "[^"]*" is forbidden: )?')


def refusal(message: str, resources: Object) -> Diagnosis:
    """Judge why admission refuses the pod, or the Job, whose container has these `resources`.

    What may pass by itself gets time: the Job's controller retries with growing pauses.
    """
    message = message[:_MAX_SEARCHED]
    forbidden = "is forbidden: " in message and _NO_ACCOUNT not in message
    message = " ".join(_FORBIDDEN.sub("", message).split())
    hint: str | None = None
    settings: dict[str, Any] = {}
    patience = PATIENCE
    for pattern, remedy, permanent in _REMEDIES:
        if pattern.search(message):
            hint, settings = remedy(message, resources)
            patience = 0 if permanent else PATIENCE
            forbidden = True
            break
    reason = f"the cluster refuses the agent's pod: {_line(message)}"
    return Diagnosis("Refused", reason, hint, patience, settings=settings, no_agent=forbidden)


def is_admission(message: str) -> bool:
    """Return whether `message` is a refusal by admission."""
    return any(pattern.search(message) for pattern, _, _ in _REMEDIES)


def _stuck(status: Object) -> Diagnosis | None:
    waiting = nested(status, "state", "waiting") or {}
    code, message = waiting.get("reason"), _line(waiting.get("message"))
    if code in _PULL:
        reason = f"cannot pull the image {status.get('image')}: {message or code}"
        return Diagnosis(code, reason, _IMAGE_HINT, 0, no_agent=code != "InvalidImageName")
    if code in _CREATE:
        reason = f"cannot start the agent's container: {message or code}"
        if "non-root" in message or "image will run as root" in message:
            patch = {"spec": {"securityContext": {"runAsUser": UID}}}
            return Diagnosis(code, reason, _USER_HINT, 0, settings=_patches(patch))
        return Diagnosis(code, reason, _image_hint(message), patience=0)
    if code == "CrashLoopBackOff":
        return _exit(nested(status, "lastState", "terminated") or {})
    return None


def _exit(ended: Object) -> Diagnosis:
    code, reason = ended.get("exitCode", "unknown"), ended.get("reason")
    words = str(ended.get("message") or "").strip()
    last = _line(words.rpartition("\n")[2])
    hint = _image_hint(words[:_MAX_SEARCHED])
    if reason == "OOMKilled":
        hint = "give it more memory in agent.resources.limits"
    text = f"the agent ended with exit code {code}"
    text += f" ({reason})" if reason and reason not in ("Error", "Completed") else ""
    return Diagnosis("Ended", f"{text}: {last}" if last else text, hint, 0, words)


def _image_hint(words: str) -> str | None:
    """Return what mends an image that, as `words` show, lacks Python or the agent."""
    if "python3" in words and "not found" in words:
        return _PYTHON_HINT
    return _NO_AGENT_HINT if _NO_AGENT.search(words) else None


def _starting(pod: Object, events: Collection[Object]) -> Diagnosis:
    """Judge a pod on its node that has no container yet: volumes, network, image."""
    uid = nested(pod, "metadata", "uid")
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning" and nested(event, "involvedObject", "uid") == uid
    ]
    if not warnings:
        return Diagnosis("Starting", "waiting for the agent's container")
    latest = max(warnings, key=_time)
    code, message = str(latest.get("reason")), _line(latest.get("message"))
    missing = code == "FailedMount" and message.endswith("not found")
    reason = f"the agent's container cannot start: {code}: {message}"
    return Diagnosis(code, reason, patience=PATIENCE if missing else inf)


def _scaling(pod: Object, events: Collection[Object]) -> str:
    """Return what the cluster autoscaler says of a pod without a node; empty if it is silent."""
    uid = nested(pod, "metadata", "uid")
    said = [
        event
        for event in events
        if event.get("reason") in _SCALING and nested(event, "involvedObject", "uid") == uid
    ]
    return _line(max(said, key=_time).get("message")) if said else ""


def _statuses(pod: Object) -> Iterator[Object]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from nested(pod, "status", kind) or ()


def _server(pod: Object) -> Object | None:
    """Return the status of the agent's own container; patches may add others."""
    own = nested(pod, "status", "containerStatuses") or ()
    return next((status for status in own if status.get("name") == NAME), None)


def _condition(item: Object, kind: str, status: str) -> Object | None:
    for condition in nested(item, "status", "conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _why(source: Object) -> str:
    return ": ".join(filter(None, (_line(source.get("reason")), _line(source.get("message")))))


def _time(event: Object) -> str:
    """Return the event's time, in RFC 3339 and UTC, which sorts as text."""
    series = nested(event, "series", "lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")


def _line(message: Any) -> str:
    return " ".join(str(message or "").split())[:_MAX_LINE]


# -- remedies: a hint, and a part of the file's `agent` -------------------------------------------

Remedy = tuple[str, dict[str, Any]]

_LEAST = {"cpu": 0.01, "memory": 64 << 20}
"""The least amounts that an agent works with."""
_USUAL = {
    "limits": {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "64Mi"},
    "requests": {"cpu": "100m", "memory": "48Mi", "ephemeral-storage": "16Mi"},
}
_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([mkMG]|[KMG]i)?")
_BOUND = re.compile(r"(maximum|minimum) (\S{1,80}) usage per (?:Container|Pod) is ([0-9.]+\w*)")
_RATIO = re.compile(
    r"(\S{1,80}) max limit to request ratio per (?:Container|Pod) is ([0-9.]{1,20})\b"
)
_QUOTA = re.compile(r"exceeded quota: .{1,260}?, requested: (\S+), used: (\S+), limited: (\S+)")
_UNSET = re.compile(r"\b(limits|requests)\.([a-z-]{1,40})\b")
_HIGHER = re.compile(
    r"(cpu|memory) limit <[^>]{1,40}> is higher than the maximum allowed of <([^>]+)>"
)
_RESTORED = {
    *("allowPrivilegeEscalation != false", "runAsNonRoot != true"),
    *("unrestricted capabilities", "seccompProfile"),
}
"""What Pod Security says of the fields that krelay itself sets."""
_CONTAINERS = re.compile(r'containers? ((?:"[^"]{1,63}"(?:, )?)+)')
_WHAT = r"(?P<what>label|annotation)s?"
_KEY = r"(?P<key>[\w.-]{1,253}(?:/[\w.-]{1,63})?)"
_METADATA = tuple(
    re.compile(text)
    for text in (
        rf"/metadata/{_WHAT}/{_KEY}/(?:\W|$)",  # Kyverno: failed at path
        rf"""['"]{_KEY}['"] in object\.metadata\.\??{_WHAT}""",  # Kubernetes: failed expression
        rf"metadata\.\??{_WHAT}\.\??{_KEY}",
        rf"""metadata\.\??{_WHAT}\[\??['"]{_KEY}""",
        rf"""{_WHAT}:? ?[{{\[]?[`'"<]{_KEY}[`'">]""",
        rf"""[`'"<]{_KEY}[`'">] {_WHAT}""",
        rf"{_WHAT} {_KEY} (?:is|must|has to)\b",
    )
)


def _patches(patch: dict[str, Any]) -> dict[str, Any]:
    return {"patches": [{"patch": patch}]}


def _pod_security(message: str, resources: Object) -> Remedy:
    """Put back what patches took away, or keep out the sidecar that a webhook adds."""
    names = {name for found in _CONTAINERS.findall(message) for name in found.split('"')[1::2]}
    for added in sorted(names - {NAME}):
        hint = f"a webhook or a patch adds the container {added}"
        if added.startswith("istio-"):
            return hint, {"labels": {"sidecar.istio.io/inject": "false"}}
        if added.startswith("linkerd-"):
            return hint, {"annotations": {"linkerd.io/inject": "disabled"}}
        return f"{hint}, which the namespace does not allow", {}
    hint = "the unpatched agent passes `restricted`"
    found = re.sub(r"\([^()]*\)", "", message.partition('": ')[2]).split(",")
    if not _RESTORED.issuperset(map(str.strip, found)):
        return f"{hint}: what do agent.patches change?", {}
    container = {"name": NAME, "securityContext": RESTRICTED_CONTAINER}
    patch = {"spec": {"securityContext": RESTRICTED_POD, "containers": [container]}}
    return f"{hint}; as the last of agent.patches, this restores it", _patches(patch)


def _assigned_user(message: str, resources: Object) -> Remedy:
    """Leave the user id to OpenShift, whose SCC has a range of them for each namespace."""
    context: dict[str, Any] = {"runAsUser": None, "runAsGroup": None}
    if "seccomp may not be set" in message:
        context["seccompProfile"] = None
    hint = "the cluster assigns user ids itself; leave them out"
    return hint, _patches({"spec": {"securityContext": context}})


def _limit_range(message: str, resources: Object) -> Remedy:
    """Move requests and limits into the range."""
    limits, requests = _amounts(resources)
    for bound, name, amount in _BOUND.findall(message):
        if bound == "maximum":
            limits[name] = amount
            if name not in requests or _number(requests[name]) > _number(amount):
                requests[name] = amount
        else:
            requests[name] = amount
            if name not in limits or _number(limits[name]) < _number(amount):
                limits[name] = amount
    for name, ratio in _RATIO.findall(message):
        limits.setdefault(name, _USUAL["limits"].get(name, "0"))
        requests[name] = _amount(name, _number(limits[name]) / max(float(ratio), 1.0), ceil)
    return _resources("the namespace's LimitRange wants other resources", limits, requests)


def _quota_unset(message: str, resources: Object) -> Remedy:
    """Set the amounts that the quota demands."""
    amounts = dict(zip(("limits", "requests"), _amounts(resources), strict=True))
    for when, name in _UNSET.findall(message):
        if name not in _USUAL[when]:
            return f"the quota wants `{when}.{name}`: set it in agent.resources", {}
        amounts[when].setdefault(name, _USUAL[when][name])
    return _resources("the namespace's quota wants every amount set", **amounts)


def _quota(message: str, resources: Object) -> Remedy:
    """Fit into the room that the quota has left."""
    full = "the namespace's quota has no room for an agent: free some, or ask for more"
    limits, requests = _amounts(resources)
    if not (found := _QUOTA.search(message)):
        return full, {}
    asked, used, limited = (
        dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        for text in found.groups()
    )
    for key, wanted in asked.items():
        when, _, name = key.rpartition(".")
        room = _number(limited.get(key, "0")) - _number(used.get(key, "0"))
        if _number(wanted) <= room:
            continue
        if name not in _LEAST or when not in ("limits", "requests", "") or room < _LEAST[name]:
            return full, {}
        amount = _amount(name, room, floor)
        if when == "limits":
            limits[name] = amount
        if when != "limits" or _number(requests.get(name, amount)) > room:
            requests[name] = amount
    return _resources("the namespace's quota has room for less", limits, requests)


def _policy(message: str, resources: Object) -> Remedy:
    """Give the pod what a policy names: a label, an annotation, an image, an amount."""
    for pattern in _METADATA:
        if found := pattern.search(message):
            what, key = found["what"], found["key"]
            return f"a policy wants the {what} {key}", {f"{what}s": {key: "VALUE"}}
    if higher := _HIGHER.findall(message):
        limits, requests = _amounts(resources)
        for name, amount in higher:
            limits[name] = amount
            if _number(requests.get(name, amount)) > _number(amount):
                requests[name] = amount
        return _resources("a policy allows less", limits, requests)
    if re.search("image|registry|repo", message, re.IGNORECASE):
        return "a policy wants an image from elsewhere", {"image": "REGISTRY/python:3.11-slim"}
    return (
        "a policy of the cluster wants another pod: agent.labels, agent.annotations, "
        "agent.resources and agent.patches shape it"
    ), {}


_REMEDIES = tuple(
    (re.compile(pattern), remedy, permanent)
    for pattern, remedy, permanent in (
        ("admission webhook|ValidatingAdmissionPolicy", _policy, True),
        ("violates PodSecurity", _pod_security, True),
        ("security context constraint", _assigned_user, True),
        ("failed quota: .*must specify", _quota_unset, True),
        ("quota", _quota, False),
        ("usage per (Container|Pod) is|limit to request ratio per", _limit_range, True),
    )
)
"""Of each refusal: how it is recognized, its remedy, and whether it is final."""


def _amounts(resources: Object) -> tuple[dict[str, str], dict[str, str]]:
    """Return the limits and the requests."""
    limits, requests = (resources.get(when) or {} for when in ("limits", "requests"))
    return dict(limits), dict(requests)


def _resources(hint: str, limits: dict[str, str], requests: dict[str, str]) -> Remedy:
    if _number(limits.get("memory", "1Gi")) < _LEAST["memory"]:
        return f"{hint}, but the agent needs at least 64Mi of memory", {}
    return hint, {"resources": {"requests": requests, "limits": limits}}


def _number(quantity: str) -> float:
    """Return a Kubernetes quantity as a number; what krelay cannot read is infinite."""
    found = _QUANTITY.fullmatch(quantity)
    return float(found[1]) * _UNITS.get(found[2], 1) if found else inf


def _amount(name: str, number: float, rounded: Callable[[float], int]) -> str:
    """Return a number as a quantity of a resource."""
    if number == inf:
        return "0"
    if name == "cpu":
        return f"{rounded(round(number * 1000, 3))}m"
    return f"{rounded(round(number / (1 << 20), 3))}Mi"
