"""The metrics of a scrape, and the examples that use them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from krelay.state.snapshot import Snapshot
from krelay.state.states import ForwardState, State, Traffic
from krelay.status.metrics import render
from tests.status.reports import TRAFFIC, forward, report

ROOT = Path(__file__).parents[2]
families_of: Any = openmetrics.text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(found: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by its unique name and labels."""
    text, _ = render(found)
    result: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in parser.text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in result
            result[key] = sample.value
    return result


def value(found: Snapshot, name: str, **labels: str) -> float | None:
    return samples(found).get((f"krelay_{name}", frozenset(labels.items())))


WEB = {"target": "web", "forward": "web"}


def test_the_process_has_its_metrics() -> None:
    found = report()
    names = {name for name, _ in samples(found)}
    assert all(name.startswith("krelay_") for name in names)
    (build,) = (labels for name, labels in samples(found) if name == "krelay_build_info")
    assert dict(build)["version"] == "1.2.3"
    assert value(found, "process_start_time_seconds") == pytest.approx(found.started.timestamp())
    assert value(found, "process_resident_memory_bytes") == 58 << 20
    assert value(found, "process_open_fds") == 44
    assert value(found, "process_tasks") == 31


def test_the_configuration_has_its_metrics() -> None:
    found = report()
    assert value(found, "config_generation") == 4
    assert value(found, "config_in_step") == 1
    assert value(found, "config_reloads_total", result="ok") == 5
    assert value(found, "config_reloads_total", result="failed") == 2
    assert found.file.applied is not None
    name = "config_last_reload_success_timestamp_seconds"
    assert value(found, name) == pytest.approx(found.file.applied.timestamp())
    file = dataclasses.replace(found.file, applied=None, in_step=False)
    wrong = dataclasses.replace(found, file=file)
    assert value(wrong, name) == pytest.approx(found.started.timestamp())
    assert value(wrong, "config_in_step") == 0


def test_a_forward_has_its_metrics() -> None:
    found = report()
    for state in State:
        assert value(found, "forward_state", state=state, **WEB) == (state is State.READY)
    assert value(found, "forward_open_streams", **WEB) == 14
    assert value(found, "forward_opened_streams_total", **WEB) == 1042
    assert value(found, "forward_streams_total", result="ok", **WEB) == 1031
    assert value(found, "forward_streams_total", result="refused", **WEB) == 2
    assert value(found, "forward_bytes_total", direction="to_remote", **WEB) == 48_300_112
    assert value(found, "forward_bytes_total", direction="to_local", **WEB) == 912_004_211
    dns = {"target": "dns", "forward": "dns"}
    assert value(found, "forward_dropped_datagrams_total", reason="no_stream", **dns) == 4
    assert value(found, "forward_open_streams", target="api", forward="api[9000:http]") == 3


def test_dial_times_are_a_histogram() -> None:
    found = report()
    name = "forward_dial_seconds"
    assert [value(found, f"{name}_bucket", le=le, **WEB) for le in ("0.001", "0.1", "1.0")] == [
        3,
        1030,
        1038,
    ]
    assert value(found, f"{name}_bucket", le="+Inf", **WEB) == 1040
    assert value(found, f"{name}_count", **WEB) == 1040
    assert value(found, f"{name}_sum", **WEB) == 9.75
    cache = {"target": "cache", "forward": "cache"}
    assert value(found, f"{name}_bucket", le="+Inf", **cache) == 0


def test_a_tunnel_has_its_metrics() -> None:
    found = report()
    one = {
        name: value(found, f"tunnel_{name}", tunnel="p1t1")
        for name in ("up", "streams", "rtt_seconds", "connects_total", "resumptions_total")
    }
    assert list(one.values()) == [1, 16, 0.0127, 3, 2]
    rest = {
        "rotations": 1,
        "replayed_bytes": 4096,
        "window_stalls": 5,
        "limit_stalls": 2,
        "compression_input_bytes": 3_000_000,
        "compression_output_bytes": 1_000_000,
    }
    assert rest == {n: value(found, f"tunnel_{n}_total", tunnel="p1t1") for n in rest}
    assert value(found, "tunnel_up", tunnel="p1t3") == 0
    assert value(found, "tunnel_rtt_seconds", tunnel="p1t3") is None


def test_results_beyond_the_limit_become_other() -> None:
    traffic = Traffic(results={f"r{n:03}": 1 for n in range(100)})
    found = report(forward("web", traffic=traffic))
    results = [
        (dict(labels)["result"], count)
        for (name, labels), count in samples(found).items()
        if name == "krelay_forward_streams_total"
    ]
    assert len(results) == 33
    assert dict(results)["other"] == 68


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain; version=0.0.4", "nonsense,,;=;"])
def test_the_text_format_is_the_default(accept: str) -> None:
    text, content_type = render(report(), accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# EOF" not in text


def test_openmetrics_is_used_if_preferred() -> None:
    text, content_type = render(report(), f"{OPENMETRICS}, text/plain; q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = list(families_of(text.decode()))
    assert {"krelay_build", "krelay_forward_dial_seconds"} <= {family.name for family in families}


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_label_value_is_escaped(target: str, name: str) -> None:
    found = report(forward(target, name=name, traffic=TRAFFIC))
    assert value(found, "forward_open_streams", target=target, forward=name) == 0
    text, _ = render(found, OPENMETRICS)
    assert list(families_of(text.decode()))


def forwards_of(found: Snapshot) -> dict[str, float | None]:
    """Return the labels of the forwards with their numbers of streams."""
    return {
        dict(labels)["forward"]: count
        for (name, labels), count in samples(found).items()
        if name == "krelay_forward_open_streams"
    }


def test_a_draining_forward_is_left_out_beside_one_of_its_name() -> None:
    """Their sum would drop when it ends, which is a restart to Prometheus."""
    name = "web[80]"
    new, old = forward("web", name=name, live=1), forward("web", State.DRAINING, index=2, name=name)
    assert forwards_of(report(new, old)) == {name: 1}
    assert forwards_of(report(old, new)) == {name: 1}
    assert forwards_of(report(old)) == {name: 0}


def test_a_port_given_twice_has_its_index_in_the_label() -> None:
    twins = [forward("web", name="web[:80]", index=index, live=index) for index in range(3)]
    expected = {"web[:80]": 0, "web[:80]#1": 1, "web[:80]#2": 2}
    assert forwards_of(report(*twins)) == expected
    ending = [dataclasses.replace(twin, state=State.DRAINING) for twin in twins]
    assert forwards_of(report(*ending)) == expected


NAMES = st.sampled_from(["a", "a#0", "a#1", "a#1#1", "other"])


@given(
    st.lists(
        st.builds(
            forward,
            NAMES,
            st.sampled_from(State),
            index=st.integers(0, 2),
            name=NAMES,
            traffic=st.just(
                dataclasses.replace(
                    TRAFFIC, results={f"r{n}": 1 for n in range(40)} | {"other": 5}, drops={"x": 1}
                )
            ),
        ),
        max_size=6,
    )
)
def test_every_series_exists_once(forwards: list[ForwardState]) -> None:
    assert samples(dataclasses.replace(report(), forwards=tuple(forwards)))


# -- the examples ------------------------------------------------------------------------------


def expressions(value: Any) -> Iterator[str]:
    """Return every PromQL expression in a document."""
    if isinstance(value, dict) and value.get("type") != "datasource":
        for key, item in value.items():
            if key in ("expr", "query") and isinstance(item, str):
                yield item
            else:
                yield from expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item)


def known() -> dict[str, set[str]]:
    """Return the names of a scrape with their labels, and those that Prometheus adds."""
    found: dict[str, set[str]] = {"up": set()}
    for name, labels in samples(report()):
        found.setdefault(name, {"job", "instance"}).update(dict(labels))
    return found


def document(name: str) -> Any:
    text = (ROOT / "examples" / name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yaml"])
def test_examples_use_only_existing_metrics(name: str) -> None:
    found, metrics = list(expressions(document(name))), known()
    assert len(found) >= 8
    labels = set().union(*metrics.values())
    for expression in found:
        names = set(re.findall(r"\bkrelay_\w+", expression))
        assert names
        assert names <= set(metrics), expression
        for metric, matchers in re.findall(r"\b(krelay_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= metrics[metric]
        for group in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", expression):
            assert {word.strip() for word in group.split(",")} <= labels, expression
        if "rate(" in expression or "increase(" in expression:
            assert re.search(r"krelay_\w+(_total|_bucket|_sum|_count)\b", expression)


def test_every_alert_has_a_description() -> None:
    labels = {label for names in known().values() for label in names}
    rules = [rule for group in document("alerts.yaml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= rule["annotations"].keys()
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


def test_the_docs_name_every_metric() -> None:
    page = (ROOT / "docs" / "status.md").read_text("utf-8")
    mentioned = set(re.findall(r"`(krelay_\w+)`", page))
    there = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known() if name != "up"}
    assert mentioned == there
