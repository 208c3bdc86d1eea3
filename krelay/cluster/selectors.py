"""Selectors: which objects of a collection are wanted, as the server's text and as a test. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from krelay.errors import ClusterError

Object = Mapping[str, Any]
Anchor = tuple[str, str]

_NAME = "metadata.name"
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector; `operator` is that of a LabelSelector's matchExpressions."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.operator == "Exists":
            return self.key
        if self.operator == "DoesNotExist":
            return f"!{self.key}"
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Judge as the API server does: `NotIn` also holds for an object without the label."""
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        return (labels.get(self.key) in self.values) is (self.operator == "In")


@dataclass(frozen=True, slots=True)
class Selector:
    """One object by its `name`, or every object whose labels meet all `requirements`."""

    name: str = ""
    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def of_label(cls, key: str, value: str) -> Selector:
        """Select the objects with this label."""
        return cls(requirements=(Requirement(key, "In", (value,)),))

    @classmethod
    def of_workload(cls, selector: Mapping[str, Any] | None) -> Selector:
        """Read a LabelSelector (apimachinery, pkg/apis/meta/v1/helpers.go); empty for none.

        Raises:
            ClusterError: it is not one.
        """
        try:
            return cls(requirements=tuple(_requirements(selector or {})))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ClusterError("its selector is not a LabelSelector") from exc

    @property
    def empty(self) -> bool:
        """Whether it selects every object."""
        return not self.name and not self.requirements

    @property
    def query(self) -> dict[str, str]:
        """The parameters of a list or a watch of the same objects."""
        if self.name:
            return {"fieldSelector": f"{_NAME}={self.name}"}
        labels = ",".join(map(str, self.requirements))
        return {"labelSelector": labels} if labels else {}

    @property
    def anchor(self) -> Anchor | None:
        """A pair that `anchors` yields for every object that matches; None if no pair is sure."""
        if self.name:
            return _NAME, self.name
        for term in self.requirements:
            if term.operator == "In" and len(term.values) == 1:
                return term.key, term.values[0]
        return None

    def matches(self, item: Object) -> bool:
        """Whether the API server would list `item`."""
        if self.name:
            return bool(item["metadata"]["name"] == self.name)
        labels = item["metadata"].get("labels") or {}
        return all(term.matches(labels) for term in self.requirements)


def anchors(item: Object) -> Iterator[Anchor]:
    """The pairs by which the selectors of an object can be looked up."""
    metadata = item["metadata"]
    yield _NAME, metadata["name"]
    yield from (metadata.get("labels") or {}).items()


def _requirements(selector: Mapping[str, Any]) -> Iterator[Requirement]:
    for key, value in sorted((selector.get("matchLabels") or {}).items()):
        yield Requirement(_text(key), "In", (_text(value),))
    for expression in selector.get("matchExpressions") or ():
        operator = expression["operator"]
        if operator not in _OPERATORS:
            raise ValueError(operator)
        values = tuple(map(_text, expression.get("values") or ()))
        if bool(values) is not operator.endswith("In"):
            raise ValueError(values)
        yield Requirement(_text(expression["key"]), operator, values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
