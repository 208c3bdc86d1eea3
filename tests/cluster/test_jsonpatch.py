"""RFC 6902 by the cases of its appendix A, retold, and by what must hold for any document."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.jsonpatch import MAX_COPIED, json_patch, same
from krelay.cluster.patch import PatchError

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text(max_size=2)
NAMES = st.text(alphabet="ab/~0-", max_size=3)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
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
        ({"a": 1}, op("remove", ""), None),
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
def test_operations(document: Any, operation: Any, result: Any) -> None:
    before = deepcopy(document)
    assert json_patch(document, [operation]) == result
    assert document == before


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (op("add", "/x/y", value=1), "'/x/y' does not exist"),
        (op("add", "/list/3", value=1), "'/list/3' is beyond the end of the list"),
        (op("add", "/list/01", value=1), "'/list/01': '01' is no place in a list"),
        (op("add", "/list/x", value=1), "'/list/x': 'x' is no place in a list"),
        (op("add", "/one/x", value=1), "'/one/x': there is no 'x' in a plain value"),
        (op("add", "/a"), "needs a 'value'"),
        (op("add", "a", value=1), "the path 'a' does not start with '/'"),
        (op("remove", "/nothing"), "'/nothing' does not exist"),
        (op("remove", "/list/-"), "'/list/-' does not exist"),
        (op("replace", "/nothing", value=1), "'/nothing' does not exist"),
        (op("test", "/one", value=True), "the test of '/one' failed"),
        (op("test", "/nothing", value=None), "'/nothing' does not exist"),
        (op("copy", "/x"), "needs a string 'from'"),
        (op("move", "/one/deeper", **{"from": "/one"}), "cannot move '/one' into itself"),
        (op("merge", "/one"), "there is no op 'merge'"),
        ({"op": "add", "value": 1}, "needs a string 'path'"),
        ("add", "needs a string 'op'"),
    ],
)
def test_what_cannot_be_done_says_which_operation_and_why(operation: Any, message: str) -> None:
    document = {"one": 1, "list": [1, 2]}
    with pytest.raises(PatchError) as caught:
        json_patch(document, [op("add", "/fine", value=1), operation])
    assert str(caught.value) == f"operation 2: {message}"
    assert document == {"one": 1, "list": [1, 2]}


def test_a_later_change_of_the_patch_does_not_reach_the_document() -> None:
    value: list[int] = []
    patched = json_patch({}, [op("add", "/a", value=value), op("copy", "/b", **{"from": "/a"})])
    value.append(1)
    patched["a"].append(2)
    assert patched == {"a": [2], "b": []}


def pointers(value: Any, at: str = "") -> list[tuple[str, Any]]:
    """Every place in a document, as RFC 6901 writes it, with what is there."""
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


@given(JSON, st.data())
def test_every_place_can_be_tested_and_put_back(document: Any, data: st.DataObject) -> None:
    path, value = data.draw(st.sampled_from(pointers(document)))
    there_and_back = [
        op("test", path, value=value),
        op("remove", path),
        op("add", path, value=value),
        op("replace", path, value="other"),
        op("test", path, value="other"),
        op("replace", path, value=value),
        op("test", "", value=document),
    ]
    assert same(json_patch(document, there_and_back), document)


@given(JSON, JSON)
def test_equality_is_json_s(one: Any, other: Any) -> None:
    assert same(one, deepcopy(one))
    assert same(one, other) == same(other, one)


def test_equality_tells_true_from_one() -> None:
    assert same({"a": [1, None]}, {"a": [1.0, None]})
    assert not same({"a": [1]}, {"a": [True]})
    assert not same([0], [False])
    assert not same([1], [1, 2])
    assert not same({"a": 1}, {"b": 1})


def test_there_is_an_end_to_copies() -> None:
    bomb = [op("copy", f"/x{n}", **{"from": ""}) for n in range(60)]
    with pytest.raises(PatchError, match=f"copies more than {MAX_COPIED} values"):
        json_patch({"a": 1}, bomb)
