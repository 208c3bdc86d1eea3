"""The memory limit, as the environment and the control groups tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import memory

MIB = 1 << 20


def written(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 256),
        ({"sys__fs__cgroup__memory_dot_max": f"{128 * MIB}\n"}, 128),
        ({"sys__fs__cgroup__memory_dot_max": "max\n"}, 256),
        ({"sys__fs__cgroup__memory_dot_max": f"{64 << 30}\n"}, 1024),
        ({"sys__fs__cgroup__memory__memory_dot_limit_in_bytes": f"{100 * MIB}\n"}, 100),
        ({"sys__fs__cgroup__memory__memory_dot_limit_in_bytes": "9223372036854771712\n"}, 256),
        (
            {
                "proc__self__cgroup": "0::/a/b\n",
                "sys__fs__cgroup__a__b__memory_dot_max": "max\n",
                "sys__fs__cgroup__a__memory_dot_max": f"{200 * MIB}\n",
            },
            200,
        ),
        (
            {
                "proc__self__cgroup": "5:cpu:/x\n4:memory:/pod\n",
                "sys__fs__cgroup__memory__pod__memory_dot_limit_in_bytes": f"{90 * MIB}\n",
            },
            90,
        ),
    ],
)
def test_the_smallest_limit_counts(files: dict[str, str], limit: int, tmp_path: Path) -> None:
    assert memory.limit({}, written(tmp_path, **files)) == limit * MIB


def test_the_environment_may_make_it_smaller(tmp_path: Path) -> None:
    root = written(tmp_path, sys__fs__cgroup__memory_dot_max=f"{128 * MIB}")
    assert memory.limit({memory.ENV: str(96 * MIB)}, root) == 96 * MIB
    assert memory.limit({memory.ENV: str(900 * MIB)}, root) == 128 * MIB
    with pytest.raises(ValueError):
        memory.limit({memory.ENV: "a lot"}, root)


def test_the_budget_leaves_a_fifth_of_the_limit() -> None:
    assert memory.budget(256 * MIB) + memory.BASE == 256 * MIB * 4 // 5
    assert memory.budget(16 * MIB) == memory.LEAST
