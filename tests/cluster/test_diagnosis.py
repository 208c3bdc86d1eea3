"""Objects of a real cluster, reduced to the relevant fields, and their diagnosis."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.diagnosis import (
    PATIENCE,
    PATIENCE_BLIND,
    Diagnosis,
    diagnose,
    end_of,
    is_admission,
    of_pod,
    refusal,
)


def pod(
    status: dict[str, Any] | None = None, *, node: str | None = "n1", **metadata: Any
) -> dict[str, Any]:
    """A pod of the agent."""
    return {
        "metadata": {"name": "krelay-server-x-y", "uid": "p1", **metadata},
        "spec": {"nodeName": node} if node else {},
        "status": status or {},
    }


def container(state: dict[str, Any], name: str = "krelay-server", **more: Any) -> dict[str, Any]:
    """The status of a pod with one container in `state`."""
    return {"containerStatuses": [{"name": name, "image": "some:1", "state": state, **more}]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return container({"waiting": {"reason": reason, "message": message}})


def event(reason: str, message: str, *, uid: str = "p1", time: str = "2026-01-01T00:00:00Z") -> Any:
    return {
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": time,
        "involvedObject": {"uid": uid},
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


RUNNING = container({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
EXIT = {"terminated": {"exitCode": 1, "reason": "Error", "message": "Traceback:\n  x\nOh: no\n"}}
QUOTA = (
    'Error creating: pods "krelay-server-x-" is forbidden: exceeded quota: small, requested: '
    "limits.memory=256Mi, used: limits.memory=0, limited: limits.memory=1Mi"
)
PSA = (
    'Error creating: pods "krelay-server-x-" is forbidden: violates PodSecurity "restricted:latest'
    '": runAsNonRoot != true (pod or container "krelay-server" must set runAsNonRoot=true)'
)
USER = {"runAsUser": None, "runAsGroup": None}
SECCOMP = {"seccompProfile": None}
ACCOUNT = (
    'Error creating: pods "krelay-server-x-" is forbidden: error looking up service account a/d: '
    'serviceaccount "d" not found'
)


@pytest.mark.parametrize(
    ("seen", "code", "patience", "words"),
    [
        (pod(RUNNING), "Running", inf, "the agent runs"),
        (pod(node=None), "Scheduling", inf, "waiting for a node"),
        (pod(), "Starting", inf, "waiting for the agent's container"),
        (pod(waiting("ContainerCreating")), "Starting", inf, "waiting for the agent's container"),
        (
            pod(
                condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available:\n x")
            ),
            "Unschedulable",
            inf,
            "no node takes the agent's pod: 0/1 nodes are available: x",
        ),
        (
            pod(condition("PodScheduled", "False", "SchedulingGated", "gated")),
            "Scheduling",
            inf,
            "no node takes the agent's pod: gated",
        ),
        (
            pod(waiting("ErrImagePull", "no such host")),
            "ErrImagePull",
            0,
            "cannot pull the image some:1: no such host",
        ),
        (
            pod(waiting("InvalidImageName")),
            "InvalidImageName",
            0,
            "cannot pull the image some:1: InvalidImageName",
        ),
        (
            pod(waiting("CreateContainerConfigError", "image will run as root")),
            "CreateContainerConfigError",
            0,
            "cannot start the agent's container: image will run as root",
        ),
        (pod(container(EXIT)), "Ended", 0, "the agent ended with exit code 1: Oh: no"),
        (
            pod(container({"terminated": {"exitCode": 0, "reason": "Completed"}})),
            "Ended",
            0,
            "the agent ended with exit code 0",
        ),
        (
            pod(container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
            "Ended",
            0,
            "the agent ended with exit code 137 (OOMKilled)",
        ),
        (
            pod(waiting("CrashLoopBackOff") | {"phase": "Running"}),
            "Ended",
            0,
            "the agent ended with exit code unknown",
        ),
        (
            pod({"phase": "Failed", "reason": "Evicted", "message": "low on memory"} | RUNNING),
            "Ended",
            0,
            "the agent's pod krelay-server-x-y ended: Evicted: low on memory",
        ),
        (
            pod({"phase": "Failed"} | container(EXIT, "other")),
            "Ended",
            0,
            "the agent ended with exit code 1: Oh: no",
        ),
        (pod({"phase": "Succeeded"}), "Ended", 0, "the agent ended with exit code unknown"),
        (
            pod(RUNNING, deletionTimestamp="2026-01-01T00:00:00Z"),
            "Deleted",
            0,
            "the agent's pod krelay-server-x-y is being deleted",
        ),
        (
            pod(
                condition("DisruptionTarget", "True", "Evicted", "node drained"),
                deletionTimestamp="2026-01-01T00:00:00Z",
            ),
            "Deleted",
            0,
            "the agent's pod krelay-server-x-y is being deleted: Evicted: node drained",
        ),
    ],
)
def test_the_state_of_a_pod_gives_code_patience_and_reason(
    seen: Any, code: str, patience: float, words: str
) -> None:
    found = of_pod(seen)
    assert (found.code, found.patience, found.reason) == (code, patience, words)
    assert found.running is (code == "Running")
    assert found.no_agent is (code == "ErrImagePull")
    ended = end_of(seen)
    if code == "Deleted" or (code == "Ended" and "unknown" not in words):
        assert ended == found
    elif code != "Ended":
        assert ended is None


def test_a_stuck_init_container_of_a_patch_is_named() -> None:
    stuck = {
        "initContainerStatuses": [
            {"image": "i:2", "state": {"waiting": {"reason": "ErrImagePull"}}}
        ]
    }
    assert of_pod(pod(stuck)).reason == "cannot pull the image i:2: ErrImagePull"


def test_the_end_of_another_container_does_not_end_the_agent() -> None:
    both = {
        "containerStatuses": [
            *container(EXIT, "other")["containerStatuses"],
            *RUNNING["containerStatuses"],
        ]
    }
    assert of_pod(pod(both)).running


def test_an_image_whose_name_is_invalid_is_an_error_of_the_file() -> None:
    assert not of_pod(pod(waiting("InvalidImageName", "x"))).no_agent


def test_the_last_log_lines_are_kept_whole() -> None:
    assert of_pod(pod(container(EXIT))).words == "Traceback:\n  x\nOh: no"


def test_an_image_without_python_gets_a_hint() -> None:
    message = 'exec: "python3": executable file not found in $PATH: unknown'
    ended = {"terminated": {"exitCode": 128, "reason": "StartError", "message": message}}
    found = of_pod(pod(container(ended)))
    assert found.reason == f"the agent ended with exit code 128 (StartError): {message}"
    assert "Python 3.11" in str(found.hint)
    assert "set agent.injectSource to false" in str(found.hint)


RUNC = "failed to create containerd task: OCI runtime create failed: runc create failed: "


@pytest.mark.parametrize(
    "message",
    [
        RUNC + 'exec: "--idle-timeout=300s": executable file not found in $PATH: unknown',
        RUNC + 'exec: "--idle-timeout=300s": stat --idle-timeout=300s: no such file or directory',
        "executable file `--idle-timeout=300s` not found in $PATH: No such file or directory",
        "unknown option --idle-timeout=300s\nusage: python3 [option] ... [-c cmd] [arg] ...",
        'nginx: invalid option: "--idle-timeout=300s"',
        "node: bad option: --idle-timeout=300s",
        "Unrecognized option: --idle-timeout=300s\nError: Could not create the Java Machine.",
        "bash: --idle-timeout=300s: invalid option\nUsage:\tbash [GNU long option] [option] ...",
        "/docker-entrypoint.sh: exec: line 47: illegal option --",
        "/entrypoint.sh: line 9: exec: --: invalid option\nexec: usage: exec [-cl] [-a name] ...",
        "sh: 0: Illegal option --",
        "/usr/local/bin/python3: No module named agent",
    ],
)
def test_an_image_without_an_agent_has_the_hint_to_inject_it(message: str) -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    found = of_pod(pod(container(ended)))
    assert "set agent.injectSource to true" in str(found.hint)
    assert found.line == f"{found.reason}; hint: {found.hint}"


def test_a_container_that_the_runtime_refuses_has_the_hint_to_inject_the_agent() -> None:
    message = f'{RUNC}exec: "--idle-timeout=300s": executable file not found in $PATH: unknown'
    found = of_pod(pod(waiting("RunContainerError", message)))
    assert "set agent.injectSource to true" in str(found.hint)


@pytest.mark.parametrize(
    "message",
    [
        "agent: error: argument --idle-timeout: invalid duration: 'x'",
        "Error: unknown flag: --verbose",
        "OSError: [Errno 98] Address already in use",
        "",
    ],
)
def test_an_agent_that_fails_by_itself_has_no_hint_to_inject_it(message: str) -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    found = of_pod(pod(container(ended)))
    assert found.hint is None
    assert found.line == found.reason


@pytest.mark.parametrize(
    ("message", "patience", "reason", "hint"),
    [
        (QUOTA, PATIENCE, "exceeded quota: small, requested: limits.memory=256Mi", "no room"),
        (PSA, 0, 'violates PodSecurity "restricted:latest": runAsNonRoot != true', "patches"),
        (ACCOUNT, PATIENCE, "error looking up service account a/d: ", None),
        (
            'Error creating: admission webhook "x" denied the request: no',
            0,
            "admission webhook",
            "agent.patches",
        ),
        ("Error creating: timed out", PATIENCE, "timed out", None),
    ],
)
def test_a_refused_pod_shows_in_the_job_s_events(
    message: str, patience: float, reason: str, hint: str | None
) -> None:
    found = diagnose([{"metadata": {}}], [], [event("FailedCreate", message, uid="j1")])
    assert (found.code, found.patience) == ("Refused", patience)
    assert found.reason.startswith(f"the cluster refuses the agent's pod: {reason}")
    assert found.hint == hint or str(hint) in str(found.hint)
    assert found.no_agent is (message not in (ACCOUNT, "Error creating: timed out"))


RESOURCES = {
    "requests": {"cpu": "100m", "memory": "48Mi"},
    "limits": {"cpu": "1", "memory": "256Mi"},
}


def amounts(**changes: dict[str, str]) -> dict[str, Any]:
    found = {when: {**RESOURCES[when], **changes.get(when, {})} for when in RESOURCES}
    return {"resources": found}


LESS = amounts(limits={"memory": "99Mi"})


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (
            (
                "[maximum cpu usage per Container is 500m, but limit is 1, maximum memory usage"
                " per Container is 40Gi, but limit is 256Mi]"
            ),
            amounts(limits={"cpu": "500m", "memory": "40Gi"}),
        ),
        ("maximum memory usage per Container is 32Mi, but limit is 256Mi", {}),
        (
            "maximum cpu usage per Container is 50m, but limit is 1",
            amounts(limits={"cpu": "50m"}, requests={"cpu": "50m"}),
        ),
        (
            "minimum memory usage per Container is 1Gi, but request is 48Mi",
            amounts(limits={"memory": "1Gi"}, requests={"memory": "1Gi"}),
        ),
        (
            "minimum cpu usage per Container is 200m, but request is 100m",
            amounts(requests={"cpu": "200m"}),
        ),
        (
            (
                'admission webhook "validation.gatekeeper.sh" denied the request: [limits] '
                "container <krelay-server> cpu limit <1> is higher than the maximum allowed of "
                "<50m>"
            ),
            amounts(limits={"cpu": "50m"}, requests={"cpu": "50m"}),
        ),
        (
            "cpu max limit to request ratio per Container is 3, but provided ratio is 10.000000",
            amounts(requests={"cpu": "334m"}),
        ),
        (
            "memory max limit to request ratio per Container is 1, but provided ratio is 5.3",
            amounts(requests={"memory": "256Mi"}),
        ),
        (QUOTA, {}),
        (QUOTA.replace("limited: limits.memory=1Mi", "limited: limits.memory=99Mi,x"), LESS),
        (
            (
                "exceeded quota: q, requested: limits.memory=256Mi, used: limits.memory=924Mi, "
                "limited: limits.memory=1Gi"
            ),
            amounts(limits={"memory": "100Mi"}),
        ),
        (
            (
                "exceeded quota: q, requested: cpu=100m,memory=48Mi, used: cpu=0,memory=0, "
                "limited: cpu=50m,memory=1Gi"
            ),
            amounts(requests={"cpu": "50m"}),
        ),
        ("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2", {}),
        ("insufficient quota to match these scopes: [{PriorityClass In [high]}]", {}),
        (
            (
                "failed quota: q: must specify limits.ephemeral-storage for: krelay-server; "
                "limits.cpu for: krelay-server"
            ),
            amounts(limits={"ephemeral-storage": "64Mi"}),
        ),
        ("failed quota: q: must specify limits.nvidia for: krelay-server", {}),
        (
            (
                'violates PodSecurity "restricted:latest": unrestricted capabilities (container'
                ' "istio-init" must not include "NET_ADMIN", "NET_RAW"), runAsNonRoot != true '
                '(pod or containers "istio-init", "krelay-server" must set runAsNonRoot=true)'
            ),
            {"labels": {"sidecar.istio.io/inject": "false"}},
        ),
        (
            (
                'violates PodSecurity "restricted:latest": unrestricted capabilities (container '
                '"linkerd-init" must not include "NET_ADMIN")'
            ),
            {"annotations": {"linkerd.io/inject": "disabled"}},
        ),
        (
            'violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)',
            {},
        ),
        (
            (
                'violates PodSecurity "restricted:latest": privileged (container "spy" must not'
                " set securityContext.privileged=true)"
            ),
            {},
        ),
        (
            (
                "unable to validate against any security context constraint: [provider "
                '"anyuid": Forbidden: not usable by user or serviceaccount, provider '
                "restricted-v2: .containers[0].runAsUser: Invalid value: 65532: must be in the "
                "ranges: [1000680000, 1000689999]]"
            ),
            {"patches": [{"patch": {"spec": {"securityContext": USER}}}]},
        ),
        (
            (
                "unable to validate against any security context constraint: "
                "[pod.metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: "
                "Forbidden: seccomp may not be set]"
            ),
            {"patches": [{"patch": {"spec": {"securityContext": {**USER, **SECCOMP}}}}]},
        ),
        (
            (
                'admission webhook "validate.kyverno.svc-fail" denied the request: resource '
                "Pod/shop/krelay-server-x was blocked due to the following policies "
                "require-labels: check: 'validation error: The label `app.kubernetes.io/team` "
                "is required. rule check failed at path "
                "/metadata/labels/app.kubernetes.io/team/'"
            ),
            {"labels": {"app.kubernetes.io/team": "VALUE"}},
        ),
        (
            (
                'admission webhook "validation.gatekeeper.sh" denied the request: '
                '[must-have-owner] you must provide labels: {"owner"}'
            ),
            {"labels": {"owner": "VALUE"}},
        ),
        (
            (
                'admission webhook "validation.gatekeeper.sh" denied the request: [limits] '
                "container <krelay-server> cpu limit <1> is higher than the maximum allowed of "
                "<200m>"
            ),
            amounts(limits={"cpu": "200m"}),
        ),
        (
            (
                'admission webhook "validation.gatekeeper.sh" denied the request: [repo] container '
                "<krelay-server> has an invalid image repo <python:3.11-slim>, allowed repos are "
                '["registry.corp/"]'
            ),
            {"image": "REGISTRY/python:3.11-slim"},
        ),
        (
            (
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: "
                "object.metadata.annotations['corp/owner'] != ''"
            ),
            {"annotations": {"corp/owner": "VALUE"}},
        ),
        (
            (
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: "
                "has(object.metadata.labels.team)"
            ),
            {"labels": {"team": "VALUE"}},
        ),
        (
            (
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: "
                "'corp/team' in object.metadata.?labels.orValue({})"
            ),
            {"labels": {"corp/team": "VALUE"}},
        ),
        ("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", {}),
        ("timed out", {}),
    ],
)
def test_a_refused_pod_has_settings_that_admission_takes(
    message: str, settings: dict[str, Any]
) -> None:
    found = refusal(f'Error creating: pods "x" is forbidden: {message}', RESOURCES)
    assert found.settings == settings
    assert (found.hint is None) is (message == "timed out")
    assert is_admission(message) is (message != "timed out")


def test_settings_of_pod_security_put_back_what_patches_took() -> None:
    found = refusal(
        'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container '
        '"krelay-server" must set x), unrestricted capabilities (container "krelay-server" must '
        'drop), runAsNonRoot != true (pod), seccompProfile (pod must set "Localhost")',
        {},
    )
    ((_, (entry,)),) = found.settings.items()
    spec = entry["patch"]["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["containers"][0]["name"] == "krelay-server"


@pytest.mark.parametrize(
    "message",
    [
        "container has runAsNonRoot and image will run as root (pod: x)",
        (
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user "
            "is non-root"
        ),
    ],
)
def test_a_pod_without_a_user_id_gets_one_by_a_patch(message: str) -> None:
    found = of_pod(pod(waiting("CreateContainerConfigError", message)))
    patch = {"spec": {"securityContext": {"runAsUser": 65532}}}
    assert found.settings == {"patches": [{"patch": patch}]}


def test_a_container_that_cannot_be_created_has_its_reason() -> None:
    found = of_pod(pod(waiting("CreateContainerError", "no such device")))
    assert found.reason == "cannot start the agent's container: no such device"
    assert (found.patience, found.settings) == (0, {})


def test_amounts_that_cannot_be_read_ask_for_nothing() -> None:
    message = "cpu max limit to request ratio per Container is 3, but provided ratio is 10"
    found = refusal(message, {"limits": {"cpu": "much"}, "requests": {}})
    assert found.settings["resources"]["requests"]["cpu"] == "0"


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=5), st.just({"cpu": "1"})))
def test_any_refusal_is_judged(message: str, resources: dict[str, Any]) -> None:
    for start in ("exceeded quota: ", "must specify ", "maximum cpu usage per Pod is ", ""):
        assert refusal(start + message, resources).code == "Refused"


def test_the_latest_refusal_counts_until_a_pod_exists() -> None:
    old = event("FailedCreate", "Error creating: old", uid="j1", time="2026-01-01T00:00:01Z")
    new: dict[str, Any] = {"reason": "FailedCreate", "message": "Error creating: new"}
    new |= {"eventTime": None, "series": {"lastObservedTime": "2026-01-01T00:00:02.5Z"}}
    assert diagnose(None, [], [new, old]).reason.endswith(": new")
    assert diagnose(None, [], [old, new]).reason.endswith(": new")
    assert diagnose(None, [pod()], [old, new]).code == "Starting"


def test_a_job_without_a_pod_is_judged_by_its_conditions() -> None:
    assert diagnose([{"metadata": {}}], [], []) == Diagnosis("NoPod", "waiting for the Job's pod")
    assert diagnose(None, [], ()).patience == inf
    assert diagnose([], [], []).code == "JobDeleted"
    suspended = {"status": condition("Suspended", "True")}
    assert diagnose([suspended], [], []).code == "Suspended"
    failed = diagnose([{"status": condition("Failed", "True", "Deadline", "too late")}], [], [])
    assert (failed.reason, failed.patience) == ("the agent's Job failed: Deadline: too late", 0)


def test_a_wait_without_the_right_to_events_ends() -> None:
    untold = diagnose(None, [], None)
    assert untold.patience == PATIENCE_BLIND
    assert "events" in str(untold.hint)
    assert diagnose(None, [pod(RUNNING)], None).running


def test_of_several_pods_the_newest_counts() -> None:
    old = pod({"phase": "Failed"}, creationTimestamp="2026-01-01T00:00:00Z")
    new = pod(RUNNING, creationTimestamp="2026-01-01T00:00:01Z")
    assert diagnose(None, [old, new], ()).running
    assert diagnose(None, [new, old], ()).running


def test_a_container_that_cannot_start_is_explained_by_the_pod_s_events() -> None:
    seen = pod(waiting("ContainerCreating"))
    sandbox = event("FailedCreatePodSandBox", "cni not ready", time="2026-01-01T00:00:01Z")
    mount = event("FailedMount", 'secret "s" not found', time="2026-01-01T00:00:02Z")
    of_job = event("Other", "not the pod's", uid="j1", time="2026-01-01T00:00:03Z")
    normal = event("Pulling", "x", time="2026-01-01T00:00:04Z") | {"type": "Normal"}
    found = of_pod(seen, [sandbox, of_job, normal])
    assert (found.code, found.patience) == ("FailedCreatePodSandBox", inf)
    assert found.reason == (
        "the agent's container cannot start: FailedCreatePodSandBox: cni not ready"
    )
    found = of_pod(seen, [mount, sandbox, of_job, normal])
    assert (found.code, found.patience) == ("FailedMount", PATIENCE)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    found = of_pod(pod(waiting("ErrImagePull", "long\n" * 10_000)))
    assert "\n" not in found.reason
    assert len(found.reason) < 1000


def some(**fields: Any) -> Any:
    """Objects with any of these fields missing or null."""
    return st.fixed_dictionaries({}, optional={k: st.none() | v for k, v in fields.items()})


TEXT = st.sampled_from(["", "x", "Failed", "ErrImagePull", "FailedMount", "PodScheduled"])
STATE = some(
    waiting=some(reason=TEXT, message=TEXT),
    terminated=some(exitCode=st.integers(0, 255), reason=TEXT, message=TEXT),
    running=some(startedAt=TEXT),
)
STATUSES = st.lists(some(name=TEXT, image=TEXT, state=STATE, lastState=STATE), max_size=2)
CONDITIONS = st.lists(
    some(type=TEXT, status=st.sampled_from(["True", "False"]), reason=TEXT, message=TEXT),
    max_size=2,
)
STATUS = some(
    phase=TEXT,
    reason=TEXT,
    conditions=CONDITIONS,
    containerStatuses=STATUSES,
    initContainerStatuses=STATUSES,
)
METADATA = some(name=TEXT, uid=TEXT, creationTimestamp=TEXT, deletionTimestamp=TEXT)
OBJECTS = st.lists(some(metadata=METADATA, spec=some(nodeName=TEXT), status=STATUS), max_size=1)
EVENTS = st.lists(
    some(type=TEXT, reason=TEXT, message=TEXT, involvedObject=some(uid=TEXT), series=some()),
    max_size=2,
)


@given(st.none() | OBJECTS, OBJECTS, st.none() | EVENTS)
def test_objects_with_missing_fields_still_give_a_reason(jobs: Any, pods: Any, events: Any) -> None:
    found = diagnose(jobs, pods, events)
    assert found.code
    assert found.reason
    assert "\n" not in found.reason


def test_the_autoscaler_says_why_a_pod_still_waits_for_a_node() -> None:
    unscheduled = pod(condition("PodScheduled", "False", "Unschedulable", "0/1 nodes fit"))
    uid = unscheduled["metadata"]["uid"]

    def said(reason: str, message: str, time: str, uid: str = uid) -> dict[str, Any]:
        about = {"involvedObject": {"uid": uid}, "lastTimestamp": time}
        return {"reason": reason, "message": message, **about}

    events = [
        said("NotTriggerScaleUp", "max size reached", "2026-01-01T00:00:01Z"),
        said("TriggeredScaleUp", "2 -> 3\n(max: 5)", "2026-01-01T00:00:02Z"),
        said("FailedScheduling", "no", "2026-01-01T00:00:03Z"),
        said("FailedScaleUp", "another pod", "2026-01-01T00:00:04Z", "other"),
    ]
    found = of_pod(unscheduled, events)
    assert found.needs_node
    assert found.reason == (
        "no node takes the agent's pod: 0/1 nodes fit; the autoscaler: 2 -> 3 (max: 5)"
    )
    assert not of_pod(pod(RUNNING)).needs_node
