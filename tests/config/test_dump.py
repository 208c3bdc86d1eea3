"""Plain data as YAML."""

from __future__ import annotations

import yaml

from krelay.config.yaml_reader import documents


def test_documents_in_their_order_without_aliases() -> None:
    shared = {"z": 1, "a": ["x"]}
    text = documents([{"b": shared, "a": shared}, {"on": "yes", "n": None}])
    assert text == (
        "---\nb:\n  z: 1\n  a:\n  - x\na:\n  z: 1\n  a:\n  - x\n---\n'on': 'yes'\nn: null\n"
    )
    assert list(yaml.safe_load_all(text))[0]["b"] == shared
