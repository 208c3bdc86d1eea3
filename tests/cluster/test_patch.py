"""RFC 7396 by its table of examples, the strategic merge by Kubernetes' rules.

tests/e2e/test_patch_as_kubectl.py holds both against kubectl itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.patch import MAX_COPIED, PatchError, json_patch, merge, plain, strategic

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "x/y"])
NAMES = st.sampled_from(["a", "b", "spec", "metadata", "args", "tolerations"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)


def without_nulls(value: Any) -> Any:
    """Drop the nulls of a new value as a merge does: lists keep theirs."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_does_as_the_table_of_rfc_7396(document: Any, patch: Any, result: Any) -> None:
    assert merge(document, patch) == result


@given(JSON, JSON)
def test_merge_twice_is_merge_once_and_changes_no_argument(document: Any, patch: Any) -> None:
    before = deepcopy((document, patch))
    once = merge(document, patch)
    assert merge(once, patch) == once
    assert (document, patch) == before


@given(OBJECTS)
def test_merge_into_nothing_is_the_patch_without_its_nulls(patch: Any) -> None:
    assert merge({}, patch) == without_nulls(patch)
    assert strategic({}, patch) == without_nulls(patch)


@given(OBJECTS, OBJECTS)
def test_without_keyed_lists_a_strategic_merge_is_a_merge(document: Any, patch: Any) -> None:
    before = deepcopy((document, patch))
    assert strategic(document, patch) == merge(document, patch)
    assert (document, patch) == before


POD: dict[str, Any] = {
    "spec": {
        "containers": [
            {
                "name": "krelay-server",
                "image": "one",
                "args": ["--port", "1"],
                "env": [{"name": "SOURCE", "value": "s"}, {"name": "KEY", "value": "k"}],
                "ports": [{"containerPort": 1, "name": "one"}],
                "volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}],
            },
            {"name": "other", "image": "two"},
        ],
        "tolerations": [{"key": "a"}],
        "nodeSelector": {"disk": "ssd"},
        "imagePullSecrets": [{"name": "one"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
}


def server(**changes: Any) -> dict[str, Any]:
    """A patch of the one container."""
    return {"spec": {"containers": [{"name": "krelay-server", **changes}]}}


def patched(patch: Any) -> Any:
    """Patch the pod; return its container and its spec."""
    spec = strategic(POD, patch)["spec"]
    return spec["containers"][0], spec


def test_strategic_finds_a_container_by_name_and_replaces_args() -> None:
    container, spec = patched(server(args=["--port", "2"]))
    assert container == POD["spec"]["containers"][0] | {"args": ["--port", "2"]}
    assert spec["containers"][1] == {"name": "other", "image": "two"}


def test_strategic_adds_to_env_and_changes_one_by_name() -> None:
    env = [{"name": "KEY", "value": "l"}, {"name": "HTTP_PROXY", "value": "p"}]
    assert patched(server(env=env))[0]["env"] == [{"name": "SOURCE", "value": "s"}, *env]


def test_strategic_replaces_what_has_no_key() -> None:
    _, spec = patched({"spec": {"tolerations": [{"key": "b"}], "nodeSelector": {"arch": "x"}}})
    assert spec["tolerations"] == [{"key": "b"}]
    assert spec["nodeSelector"] == {"disk": "ssd", "arch": "x"}


@pytest.mark.parametrize(
    ("field", "element", "length"),
    [
        ("imagePullSecrets", {"name": "two"}, 2),
        ("imagePullSecrets", {"name": "one"}, 1),
        ("volumes", {"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}, 1),
        ("initContainers", {"name": "krelay-server"}, 1),
        ("hostAliases", {"ip": "10.0.0.1"}, 1),
        ("topologySpreadConstraints", {"topologyKey": "zone"}, 1),
    ],
)
def test_strategic_merges_the_pod_s_lists_by_their_key(
    field: str, element: Any, length: int
) -> None:
    merged = patched({"spec": {field: [element]}})[1][field]
    assert len(merged) == length
    assert element in merged


def test_strategic_merges_ports_and_mounts_by_number_and_path() -> None:
    container, _ = patched(
        server(
            ports=[{"containerPort": 1, "name": "uno"}, {"containerPort": 2}],
            volumeMounts=[{"mountPath": "/tmp", "readOnly": True}],
        )
    )
    assert container["ports"] == [{"containerPort": 1, "name": "uno"}, {"containerPort": 2}]
    assert container["volumeMounts"] == [{"mountPath": "/tmp", "name": "tmp", "readOnly": True}]


def test_strategic_null_deletes() -> None:
    container, spec = patched(server(image=None) | {"x": None})
    assert "image" not in container
    assert "args" in container
    assert "containers" in spec


def test_strategic_deletes_an_element_by_its_key() -> None:
    container, _ = patched(server(env=[{"name": "KEY", "$patch": "delete"}]))
    assert container["env"] == [{"name": "SOURCE", "value": "s"}]
    assert (
        patched(server(env=[{"name": "NONE", "$patch": "delete"}]))[0]
        == (POD["spec"]["containers"][0])
    )


def test_strategic_replaces_a_list_on_demand() -> None:
    container, _ = patched(server(env=[{"$patch": "replace"}, {"name": "X", "value": "1"}]))
    assert container["env"] == [{"name": "X", "value": "1"}]


def test_strategic_replaces_deletes_and_thins_an_object() -> None:
    assert patched({"spec": {"nodeSelector": {"$patch": "replace", "a": "b"}}})[1][
        "nodeSelector"
    ] == {"a": "b"}
    assert patched({"spec": {"nodeSelector": {"$patch": "delete"}}})[1]["nodeSelector"] == {}
    volume = {"name": "tmp", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}
    assert patched({"spec": {"volumes": [volume]}})[1]["volumes"] == [
        {"name": "tmp", "secret": {"secretName": "s"}}
    ]


def test_strategic_makes_what_was_not_there_and_replaces_another_type() -> None:
    assert strategic({"spec": {"containers": 1}}, server(image="i")) == server(image="i")
    assert strategic({}, server(image="i", args=None)) == server(image="i")
    assert strategic({"spec": {"containers": ["odd"]}}, server())["spec"]["containers"] == [
        "odd",
        {"name": "krelay-server"},
    ]


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"$patch": "merge"}, "the patch: $patch is 'merge', not delete or replace"),
        (
            server(env=[{"value": "v"}]),
            "spec.containers[krelay-server].env: an element lacks the merge key 'name'",
        ),
        (server(env=["A=b"]), "spec.containers[krelay-server].env: holds objects, not 'A=b'"),
        (server(env=[{"name": "A", "$patch": "add"}]), ".env: $patch is 'add', not delete or rep"),
        ({"spec": {"$setElementOrder/containers": []}}, "spec.$setElementOrder/containers: this"),
    ],
)
def test_a_strategic_patch_that_does_not_fit_is_an_error_with_its_path(
    patch: Any, message: str
) -> None:
    with pytest.raises(PatchError) as caught:
        strategic(POD, patch)
    assert message in str(caught.value)


def test_a_patch_may_consist_of_frozen_mappings() -> None:
    frozen = MappingProxyType(
        {"spec": MappingProxyType({"containers": (MappingProxyType({"name": "x"}),)})}
    )
    melted = {"spec": {"containers": [{"name": "x"}]}}
    assert plain(frozen) == merge({}, frozen) == strategic({}, frozen) == melted


ELEMENTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abcd")}, optional={"value": st.sampled_from("xyz")}
    ),
    max_size=4,
    unique_by=lambda element: element["name"],
)


@given(ELEMENTS, ELEMENTS)
def test_keyed_lists_merge_as_maps_do(old: Any, new: Any) -> None:
    def by_name(elements: Any) -> Any:
        return {element["name"]: element for element in elements}

    merged = strategic({"env": old}, {"env": new})["env"]
    assert by_name(merged) == merge(by_name(old), by_name(new))
    assert len(merged) == len(by_name(merged))
    kept = [element["name"] for element in old]
    assert [element["name"] for element in merged][: len(kept)] == kept


POINTED_SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text(max_size=2)
)
POINTED_NAMES = st.text(alphabet="ab/~0-", max_size=3)
DOCUMENT = st.recursive(
    POINTED_SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(POINTED_NAMES, inner, max_size=3),
)


def op(kind: str, path: str, **more: Any) -> dict[str, Any]:
    """One operation."""
    return {"op": kind, "path": path, **more}


@pytest.mark.parametrize(
    ("document", "operation", "result"),
    [
        ({"a": 1}, op("add", "/b", value=2), {"a": 1, "b": 2}),
        ({"a": 1}, op("add", "/a", value=2), {"a": 2}),
        ({"a": [1, 3]}, op("add", "/a/1", value=2), {"a": [1, 2, 3]}),
        ({"a": [1]}, op("add", "/a/1", value=2), {"a": [1, 2]}),
        ({"a": [1]}, op("add", "/a/-", value=[2]), {"a": [1, [2]]}),
        ({"a": 1}, op("add", "", value=None), None),
        ({"": 1}, op("add", "/", value=2), {"": 2}),
        ({"a": 1, "b": 2}, op("remove", "/b"), {"a": 1}),
        ({"a": [1, 2, 3]}, op("remove", "/a/1"), {"a": [1, 3]}),
        ({"a": 1}, op("replace", "/a", value={}), {"a": {}}),
        ([1, 2], op("replace", "/0", value=0), [0, 2]),
        ({"a": 1}, op("replace", "", value=[]), []),
        (
            {"a": {"x": 1}, "b": {}},
            op("move", "/b/y", **{"from": "/a/x"}),
            {"a": {}, "b": {"y": 1}},
        ),
        ([1, 2, 3], op("move", "/2", **{"from": "/0"}), [2, 3, 1]),
        ({"a": 1}, op("move", "/a", **{"from": "/a"}), {"a": 1}),
        ({"a": [1]}, op("copy", "/b", **{"from": "/a"}), {"a": [1], "b": [1]}),
        ({"a": [1, "x"]}, op("test", "/a/1", value="x"), {"a": [1, "x"]}),
        ({"/": 9, "~1": 10}, op("test", "/~01", value=10), {"/": 9, "~1": 10}),
        ({"/": 9}, op("replace", "/~1", value=1), {"/": 1}),
        ({"a": 1}, op("add", "/b", value=2, unknown=3), {"a": 1, "b": 2}),
    ],
)
def test_an_operation_is_applied_to_a_copy(document: Any, operation: Any, result: Any) -> None:
    before = deepcopy(document)
    assert json_patch(document, [operation]) == result
    assert document == before


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (op("add", "/x/y", value=1), " (add '/x/y'): the document has no such path"),
        (op("add", "/list/3", value=1), " (add '/list/3'): can't insert outside of list"),
        (op("add", "/list/01", value=1), " (add '/list/01'): the document has no such path"),
        (op("add", "/list/x", value=1), " (add '/list/x'): the document has no such path"),
        (op("add", "/one/x", value=1), " (add '/one/x'): the document has no such path"),
        (op("add", "/a"), " (add '/a'): The operation does not contain a 'value' member"),
        (op("add", "a", value=1), ": the document has no such path"),
        (
            op("remove", "/nothing"),
            " (remove '/nothing'): can't remove a non-existent object 'nothing'",
        ),
        (op("remove", "/list/-"), " (remove '/list/-'): the document has no such path"),
        (op("remove", ""), " (remove ''): can't remove the whole document"),
        (
            op("replace", "/nothing", value=1),
            " (replace '/nothing'): can't replace a non-existent object 'nothing'",
        ),
        (op("test", "/one", value=True), " (test '/one'): the test failed"),
        (op("test", "/nothing", value=None), " (test '/nothing'): the test failed"),
        (op("copy", "/x"), " (copy '/x'): The operation does not contain a 'from' member"),
        (op("copy", "/x", **{"from": 5}), " (copy '/x'): Invalid 'from'"),
        (op("copy", "/x", **{"from": "/no"}), " (copy '/x'): the document has no such path"),
        (
            op("move", "/one/deeper", **{"from": "/one"}),
            " (move '/one/deeper'): Cannot move values into their own children",
        ),
        (op("merge", "/one"), ": Unknown operation 'merge'"),
        ({"op": "add", "value": 1}, ": Operation must have a 'path' member"),
        (5, ": Operation must be an object"),
    ],
)
def test_an_operation_that_does_not_fit_is_named_with_the_reason(
    operation: Any, message: str
) -> None:
    document = {"one": 1, "list": [1, 2]}
    with pytest.raises(PatchError) as caught:
        json_patch(document, [op("add", "/fine", value=1), operation])
    assert str(caught.value) == f"operation 2{message}"
    assert document == {"one": 1, "list": [1, 2]}


@pytest.mark.parametrize("operation", ["add", None, [], {"op": ["add"], "path": "/a"}])
def test_an_operation_of_another_type_is_a_patch_error(operation: Any) -> None:
    with pytest.raises(PatchError, match="^operation 1: "):
        json_patch({}, [operation])


def test_an_error_does_not_repeat_the_document() -> None:
    for operation in (op("test", "", value=1), op("add", "/x/y", value=1)):
        with pytest.raises(PatchError) as caught:
            json_patch({"long": "s" * 1000}, [operation])
        assert len(str(caught.value)) < 100


def test_a_later_change_of_the_patch_does_not_reach_the_document() -> None:
    value: list[int] = []
    patched = json_patch({}, [op("add", "/a", value=value), op("copy", "/b", **{"from": "/a"})])
    value.append(1)
    patched["a"].append(2)
    assert patched == {"a": [2], "b": []}


def pointers(value: Any, at: str = "") -> list[tuple[str, Any]]:
    """Return every JSON pointer of a document (RFC 6901) with its value."""
    found = [(at, value)]
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, each in inner:
        found += pointers(each, f"{at}/{str(name).replace('~', '~0').replace('/', '~1')}")
    return found


@given(DOCUMENT, st.data())
def test_every_place_can_be_tested_and_put_back(document: Any, data: st.DataObject) -> None:
    path, value = data.draw(st.sampled_from(pointers(document)))
    there_and_back = [
        op("test", path, value=value),
        *([op("remove", path), op("add", path, value=value)] if path else []),
        op("replace", path, value="other"),
        op("test", path, value="other"),
        op("replace", path, value=value),
        op("test", "", value=document),
    ]
    assert json_patch(document, there_and_back) == document


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": [1, None]}, {"a": [1.0, None]}, True),
        ({"a": [1]}, {"a": [True]}, False),
        ([0], [False], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_a_test_compares_as_json_does(one: Any, other: Any, equal: bool) -> None:
    with nullcontext() if equal else pytest.raises(PatchError, match="the test failed"):
        json_patch(one, [op("test", "", value=other)])


def test_copies_that_double_the_document_are_bounded() -> None:
    bomb = [op("copy", f"/x{n}", **{"from": ""}) for n in range(60)]
    with pytest.raises(PatchError, match=f"copies more than {MAX_COPIED} values"):
        json_patch({"a": 1}, bomb)
