"""Selectors: the wanted objects of a collection, as query parameters and as a predicate. Pure."""

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
    """One term of a label selector, with an operator of a LabelSelector's matchExpressions."""

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
        """Return the API server's verdict: `NotIn` also matches an object without the label."""
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        return (labels.get(self.key) in self.values) is (self.operator == "In")


@dataclass(frozen=True, slots=True)
class Selector:
    """One object by its `name`, or all objects whose labels meet all `requirements`."""

    name: str = ""
    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def of_label(cls, key: str, value: str) -> Selector:
        """Select the objects with this label."""
        return cls(requirements=(Requirement(key, "In", (value,)),))

    @classmethod
    def of_workload(cls, selector: Mapping[str, Any] | None) -> Selector:
        """Convert a LabelSelector that `objects` has read; None gives an empty selector.

        Source: apimachinery, pkg/apis/meta/v1/helpers.go.

        Raises:
            ClusterError: an unknown operator, or one with too many or too few values.
        """
        selector = selector or {}
        found = [
            Requirement(key, "In", (value,))
            for key, value in sorted(selector.get("matchLabels", {}).items())
        ]
        for term in selector.get("matchExpressions", ()):
            key, operator, values = term["key"], term["operator"], tuple(term.get("values", ()))
            if operator not in _OPERATORS or bool(values) is not operator.endswith("In"):
                raise ClusterError(
                    f"not a LabelSelector: {key} {operator} with {len(values)} values"
                )
            found.append(Requirement(key, operator, values))
        return cls(requirements=tuple(found))

    @property
    def empty(self) -> bool:
        """Whether every object matches."""
        return not self.name and not self.requirements

    @property
    def field_selector(self) -> str:
        """The fieldSelector of a list or a watch; may be empty."""
        return f"{_NAME}={self.name}" if self.name else ""

    @property
    def label_selector(self) -> str:
        """The labelSelector of a list or a watch; may be empty."""
        return ",".join(map(str, self.requirements))

    @property
    def anchor(self) -> Anchor | None:
        """A pair that `anchors` yields for every matching object; None if there is none."""
        if self.name:
            return _NAME, self.name
        for term in self.requirements:
            if term.operator == "In" and len(term.values) == 1:
                return term.key, term.values[0]
        return None

    def matches(self, item: Object) -> bool:
        """Return whether the API server would list `item`."""
        if self.name:
            return bool(item["metadata"]["name"] == self.name)
        labels = item["metadata"].get("labels", {})
        return all(term.matches(labels) for term in self.requirements)


def anchors(item: Object) -> Iterator[Anchor]:
    """Yield the pairs by which an index finds the selectors of an object."""
    metadata = item["metadata"]
    yield _NAME, metadata["name"]
    yield from metadata.get("labels", {}).items()
