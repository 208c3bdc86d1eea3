"""The fuzzing targets, on their corpus and a little beyond it; `make fuzz` goes on from there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.config import config_txt, config_yaml
from fuzz.seeds import seeds
from fuzz.targets import TARGETS, Target

EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


def corpus(target: Target) -> list[bytes]:
    """What is kept, and what the examples and the vectors of today make."""
    kept = [path.read_bytes() for path in sorted(target.corpus.iterdir())]
    return list(dict.fromkeys([*kept, *seeds(target.name)]))


@EVERY
def test_the_corpus_is_kept_as_promised(target: Target) -> None:
    run = target.load()
    for data in corpus(target):
        run(data)


@EVERY
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_nor_does_what_is_near_it_break_a_promise(target: Target, data: st.DataObject) -> None:
    run, known = target.load(), corpus(target)
    random.Random(0).shuffle(known)
    one, other = (data.draw(st.sampled_from(known)) for _ in range(2))
    cut, again = (data.draw(st.integers(0, len(part))) for part in (one, other))
    run((one[:cut] + data.draw(st.binary(max_size=12)) + other[again:])[: target.size])


@EVERY
@given(data=st.binary(max_size=200))
@settings(max_examples=20, deadline=None)
def test_any_bytes_do_not(target: Target, data: bytes) -> None:
    target.load()(data)


LARGE = 1 << 18
HEAD = b"apiVersion: krelay/v1\n"


@pytest.mark.parametrize("run", [config_yaml, config_txt])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * LARGE,
        b"{" * (LARGE - 1),
        b"- " * (LARGE // 2),
        b"a: " * (LARGE // 3),
        b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 700)),
        b"&a [" * (LARGE // 4),
        b"9" * LARGE,
        b"a: " + b"9" * (LARGE - 3),
        b"0x" + b"f" * (LARGE - 2),
        b'"' + b"x" * (LARGE - 2) + b'"',
        b'"' + b"\\" * (LARGE - 2) + b'"',
        b"a: |\n" + b" x\n" * (LARGE // 3 - 2),
        b"\n" * LARGE,
        b"#" * LARGE,
        b"!" * LARGE,
        b"%" * LARGE,
        b"*a " * (LARGE // 3),
        b"&a 1\n" * (LARGE // 5),
        b"? " * (LARGE // 2),
        b"-" * LARGE,
        b"svc/a 1\n" * (LARGE // 8),
        b"svc/a " + b"1 " * (LARGE // 2 - 3),
        b"svc/" + b"a-" * (LARGE // 2 - 3) + b" 80",
        b"svc/a " + b"9" * (LARGE - 6),
        b"-n " * (LARGE // 3),
        b"".join(b"svc/a%d %d\n" % (n, n) for n in range(10_000)),
        HEAD + b"targets:\n" + b"".join(b" t%d: svc/a :%d\n" % (n, n + 1) for n in range(3_000)),
        HEAD + b"targets:\n" + b"".join(b" t%d: svc/a 1\n" % n for n in range(3_000)),
        HEAD + b"targets: {web: svc/a 80}\n" + b"".join(b"k%d: 1\n" % n for n in range(8_000)),
        HEAD + b"targets: {web: {target: svc/a, ports: [" + b"1," * 10_000 + b"]}}",
        HEAD + b"targets: {web: svc/a 80" + b"}" * LARGE,
        HEAD + b"context: " + b"${A:-" * 40_000,
        HEAD + b"context: " + b"$" * (LARGE - 40),
        HEAD + b"context: '" + b"${PORT}" * 30_000 + b"'\ntargets: {web: svc/a 80}",
    ],
    ids=range(34),
)
def test_a_giant_is_told_so(run: Callable[[bytes], None], data: bytes) -> None:
    run(data[:LARGE])
