"""Diagnosis: why the agent does not run (yet), in the cluster's own words. Pure.

Problems show in three places: the Job's events (quota, Pod Security and any other admission,
which leave no pod), the pod's status (scheduling, image, exit), and the pod's events (mounts,
sandbox). Objects are as `krelay.cluster.objects` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from krelay.cluster.agent_job import NAME
from krelay.cluster.objects import nested

Object = Mapping[str, Any]

PATIENCE = 3.5
"""Seconds for problems that may pass: a node joins, a quota has room, an account is created."""

PATIENCE_BLIND = 30.0
"""Seconds without a pod if krelay may not read the events: the controller may just be slow."""

_MAX_LINE = 600


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of the agent's start.

    `code` names the state. A start that stays in it for `patience` seconds has failed (0: failed
    now, `inf`: a normal step of a start). `reason` is one line. `words` are the last log lines of
    a container that has ended.
    """

    code: str
    reason: str
    hint: str | None = None
    patience: float = inf
    words: str = ""

    @property
    def running(self) -> bool:
        """Whether the agent's container runs; only a tunnel shows whether the agent listens."""
        return self.code == "Running"


def diagnose(
    jobs: Collection[Object] | None, pods: Collection[Object], events: Collection[Object] | None
) -> Diagnosis:
    """Judge a Job (`jobs` has one element or none) by itself, its pods, and their events; None
    stands for what krelay may not read."""
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
        return Diagnosis("NoPod", _NO_EVENTS, _EVENTS_HINT, PATIENCE_BLIND)
    refusals = [event for event in events if event.get("reason") == "FailedCreate"]
    if refusals:
        return _refused(_line(max(refusals, key=_time).get("message")))
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
        return Diagnosis("Unschedulable", reason, _NODE_HINT, PATIENCE)
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
_NODE_HINT = "agent.nodeSelector, agent.tolerations and agent.resources decide where it may run"
_IMAGE_HINT = "set another agent.image, or add imagePullSecrets by a patch"
_PULL = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_PERMANENT = ("violates PodSecurity", "admission webhook", "ValidatingAdmissionPolicy")
_FORBIDDEN = re.compile(r'^Error creating: (?:pods "[^"]*" is forbidden: )?')


def _refused(message: str) -> Diagnosis:
    """Judge a refusal of the pod; the Job's controller retries with growing pauses."""
    hint = None
    if "violates PodSecurity" in message:
        hint = "the unpatched agent passes `restricted`: what do agent.patches change?"
    elif "quota" in message:
        hint = "make room in the quota, or request less in agent.resources"
    permanent = any(words in message for words in _PERMANENT)
    reason = f"the cluster refuses the agent's pod: {_FORBIDDEN.sub('', message)}"
    return Diagnosis("Refused", reason, hint, 0 if permanent else PATIENCE)


def _stuck(status: Object) -> Diagnosis | None:
    waiting = nested(status, "state", "waiting") or {}
    code, message = waiting.get("reason"), _line(waiting.get("message"))
    if code in _PULL:
        reason = f"cannot pull the image {status.get('image')}: {message or code}"
        return Diagnosis(code, reason, _IMAGE_HINT, 0)
    if code in _CREATE:
        return Diagnosis(code, f"cannot start the agent's container: {message or code}", patience=0)
    if code == "CrashLoopBackOff":
        return _exit(nested(status, "lastState", "terminated") or {})
    return None


def _exit(ended: Object) -> Diagnosis:
    code, reason = ended.get("exitCode", "unknown"), ended.get("reason")
    words = str(ended.get("message") or "").strip()
    last = _line(words.rpartition("\n")[2])
    hint = None
    if reason == "OOMKilled":
        hint = "give it more memory in agent.resources.limits"
    elif "python3" in words and "not found" in words:
        hint = "agent.image needs Python 3.11 or later as `python3`, or the agent itself"
    text = f"the agent ended with exit code {code}"
    text += f" ({reason})" if reason and reason not in ("Error", "Completed") else ""
    return Diagnosis("Ended", f"{text}: {last}" if last else text, hint, 0, words)


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
