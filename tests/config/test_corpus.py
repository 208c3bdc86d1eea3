"""Files and the exact words about them: `NAME.expected` beside each.

A valid file's has one line a target, an invalid one's one line a problem, as
`LINE:COLUMN message (hint: ...)`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from krelay.config import load
from krelay.errors import ConfigError

DATA = Path(__file__).parent / "data"
ENVIRON = {"EMPTY": "", "NS": "shop", "PORT_SET": "808", "INJECT": "svc/x 80\nevil: true"}


def files(folder: str) -> list[Path]:
    return sorted(path for path in (DATA / folder).iterdir() if path.suffix != ".expected")


def expected(path: Path) -> list[str]:
    return path.with_name(path.name + ".expected").read_text("utf-8").splitlines()


@pytest.mark.parametrize("path", files("valid"), ids=lambda path: path.name)
def test_a_valid_file_gives_its_targets(path: Path) -> None:
    config = load(str(path), environ=ENVIRON)
    assert [
        f"{target.line}: {target.name}: {target} {' '.join(map(str, target.ports))} "
        f"namespace={target.namespace} context={target.context} listen={target.listen}"
        for target in config.targets
    ] == expected(path)


@pytest.mark.parametrize("path", files("invalid"), ids=lambda path: path.name)
def test_an_invalid_file_gives_every_problem(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ=ENVIRON)
    assert [
        f"{p.line}:{p.column} {p.message}" + (f" (hint: {p.hint})" if p.hint else "")
        for p in caught.value.problems
    ] == expected(path)


def test_the_corpus_is_whole() -> None:
    assert len(files("invalid")) >= 40
    for folder in ("valid", "invalid"):
        expectations = {path.name for path in (DATA / folder).glob("*.expected")}
        assert expectations == {f"{path.name}.expected" for path in files(folder)}
