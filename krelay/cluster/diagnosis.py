"""Diagnosis: why the agent does not run (yet), in the cluster's own words. Pure.

What can go wrong shows in three places: the Job's events (quota, Pod Security and every other
admission: there is no pod to look at), the pod's status (scheduling, image, exit), and the
pod's events (mounts, sandbox).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from krelay.cluster.agent_job import NAME

Object = Mapping[str, Any]

PATIENCE = 3.5
"""Seconds for what may pass by itself: a node joins, a quota gets room, an account is made."""

PATIENCE_UNTOLD = 30.0
"""Seconds without a pod where we may not read why: its controller may just be slow."""

_SHOWN = 600


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the cluster says of the agent now.

    `code` names the state: while it stays the same, `patience` seconds in all may pass until
    it counts as failed (0: it has failed, infinity: this is how a pod starts). `reason` is one
    line. `words` are the container's last lines, where it ended.
    """

    code: str
    reason: str
    hint: str | None = None
    patience: float = inf
    words: str = ""

    @property
    def running(self) -> bool:
        """Whether the agent's container runs; whether it listens is for a tunnel to say."""
        return self.code == "Running"


def diagnose(
    jobs: Collection[Object] | None, pods: Collection[Object], events: Collection[Object] | None
) -> Diagnosis:
    """Judge what is seen of one Job: itself, its pods, and the events of all of them.

    `jobs` or `events` are None where we may not look.
    """
    if pods:
        newest = max(pods, key=lambda pod: str(_at(pod, "metadata", "creationTimestamp")))
        return of_pod(newest, events or ())
    if jobs is not None:
        if not jobs:
            return Diagnosis("JobDeleted", "somebody deleted the agent's Job", patience=0)
        job = next(iter(jobs))
        if failed := _condition(job, "Failed", "True"):
            return Diagnosis("JobFailed", f"the agent's Job failed: {_why(failed)}", patience=0)
        if _condition(job, "Suspended", "True"):
            return Diagnosis("Suspended", "the agent's Job is suspended, a queue may hold it back")
    if events is None:
        return Diagnosis("NoPod", _UNTOLD, _TELL, PATIENCE_UNTOLD)
    refusals = [event for event in events if event.get("reason") == "FailedCreate"]
    if refusals:
        return _refused(_line(max(refusals, key=_time).get("message")))
    return Diagnosis("NoPod", "waiting for the Job's pod")


def of_pod(pod: Object, events: Collection[Object] = ()) -> Diagnosis:
    """Judge the agent's pod."""
    if ended := end_of(pod):
        return ended
    for status in _statuses(pod):
        if stuck := _stuck(status):
            return stuck
    if "running" in (_at(_server(pod), "state") or {}):
        return Diagnosis("Running", "the agent runs")
    if unscheduled := _condition(pod, "PodScheduled", "False"):
        reason = f"no node takes the agent's pod: {_line(unscheduled.get('message'))}"
        if unscheduled.get("reason") != "Unschedulable":
            return Diagnosis("Scheduling", reason)
        return Diagnosis("Unschedulable", reason, _WHERE, PATIENCE)
    if not _at(pod, "spec", "nodeName"):
        return Diagnosis("Scheduling", "waiting for a node")
    return _starting(pod, events)


def end_of(pod: Object) -> Diagnosis | None:
    """Why the pod has ended or is about to, or None."""
    name = _at(pod, "metadata", "name")
    if _at(pod, "metadata", "deletionTimestamp"):
        disruption = _condition(pod, "DisruptionTarget", "True")
        why = f": {_why(disruption)}" if disruption else ""
        return Diagnosis("Deleted", f"the agent's pod {name} is being deleted{why}", patience=0)
    status = _at(pod, "status") or {}
    over = status.get("phase") in ("Failed", "Succeeded")
    if over and status.get("reason"):  # Evicted, OutOfcpu, NodeAffinity, ...
        return Diagnosis("Ended", f"the agent's pod {name} ended: {_why(status)}", patience=0)
    ended = _at(_server(pod), "state", "terminated")
    if ended is None and over:
        ended = next(filter(None, (_at(s, "state", "terminated") for s in _statuses(pod))), {})
    return None if ended is None else _exit(ended)


_UNTOLD = "no pod appears for the agent's Job, and we may not read the events that tell why"
_TELL = "a quota or Pod Security? With `list` and `watch` on events krelay can tell"
_WHERE = "agent.nodeSelector, agent.tolerations and agent.resources say where it may run"
_IMAGE = "agent.image names another; a patch may add imagePullSecrets"
_PULL = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_REFUSED_FOR_GOOD = ("violates PodSecurity", "admission webhook", "ValidatingAdmissionPolicy")
_FORBIDDEN = re.compile(r'^Error creating: (?:pods "[^"]*" is forbidden: )?')


def _refused(message: str) -> Diagnosis:
    """The Job's controller may not make the pod, and tries again, ever more slowly."""
    hint = None
    if "violates PodSecurity" in message:
        hint = "the agent passes `restricted` as it comes: what do agent.patches change?"
    elif "quota" in message:
        hint = "make room in the quota, or ask for less in agent.resources"
    for_good = any(words in message for words in _REFUSED_FOR_GOOD)
    reason = f"the cluster refuses the agent's pod: {_FORBIDDEN.sub('', message)}"
    return Diagnosis("Refused", reason, hint, 0 if for_good else PATIENCE)


def _stuck(status: Object) -> Diagnosis | None:
    waiting = _at(status, "state", "waiting") or {}
    code, message = waiting.get("reason"), _line(waiting.get("message"))
    if code in _PULL:
        reason = f"cannot pull the image {status.get('image')}: {message or code}"
        return Diagnosis(code, reason, _IMAGE, 0)
    if code in _CREATE:
        return Diagnosis(code, f"cannot start the agent's container: {message or code}", patience=0)
    if code == "CrashLoopBackOff":
        return _exit(_at(status, "lastState", "terminated") or {})
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
    told = f"the agent ended with exit code {code}"
    told += f" ({reason})" if reason and reason not in ("Error", "Completed") else ""
    return Diagnosis("Ended", f"{told}: {last}" if last else told, hint, 0, words)


def _starting(pod: Object, events: Collection[Object]) -> Diagnosis:
    """On a node: volumes, network, image."""
    uid = _at(pod, "metadata", "uid")
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning" and _at(event, "involvedObject", "uid") == uid
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
        yield from _at(pod, "status", kind) or ()


def _server(pod: Object) -> Object | None:
    """The status of the agent's own container: a patch may have added others."""
    own = _at(pod, "status", "containerStatuses") or ()
    return next((status for status in own if status.get("name") == NAME), None)


def _condition(thing: Object, kind: str, status: str) -> Object | None:
    for condition in _at(thing, "status", "conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _why(said: Object) -> str:
    return ": ".join(filter(None, (_line(said.get("reason")), _line(said.get("message")))))


def _time(event: Object) -> str:
    """RFC 3339 in UTC: texts in the order of time."""
    series = _at(event, "series", "lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")


def _line(message: Any) -> str:
    return " ".join(str(message or "").split())[:_SHOWN]


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
