"""One target under atheris: `python -m fuzz.one NAME LIBFUZZER_ARGUMENTS...`."""

from __future__ import annotations

import logging
import sys

import atheris

from fuzz.targets import TARGETS


def main(name: str, arguments: list[str]) -> None:
    """Run until libFuzzer ends the process."""
    # What a peer does wrong is logged, a line each.
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["krelay", "agent", "h11", "websockets"]):
        run = TARGETS[name].load()
        # What is imported at first use is to be seen too, and is not the first input's time.
        for seed in sorted(TARGETS[name].corpus.iterdir()):
            run(seed.read_bytes())
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
