# `make up` and `make test` need Python >= 3.11 and nothing else; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 1800
SOAK_SCHEDULES ?= 5000

.DEFAULT_GOAL := help
.PHONY: help up test check format lint types layers e2e soak fuzz bench-quick bench-reload bench-scale lock clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

up: $(STAMP)     ## relay the quick start's targets with an embedded agent: no cluster needed
	@exec $(BIN)/python examples/quickstart.py

test: $(STAMP)   ## everything that needs no cluster
	$(BIN)/python -m pytest -m 'not e2e'

check: format lint types layers test  ## what must hold before a commit

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

e2e: $(STAMP)    ## the suite on a real cluster: $KUBECONFIG, or one that it starts (root)
	$(BIN)/python -m pytest -m e2e tests/e2e tests/chaos

soak: $(STAMP)   ## half an hour of faults on the real cluster, and thousands of schedules without one
	KRELAY_SCHEDULES=$(SOAK_SCHEDULES) $(BIN)/python -m pytest -q tests/datapath/test_chaos.py
	$(BIN)/python -m tests.chaos.run --seconds $(SOAK_SECONDS) $(SOAK)

fuzz: $(STAMP)   ## every hostile-bytes target for FUZZ_SECONDS (600), two at a time (Linux)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[fuzz]'
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

bench-quick: $(STAMP)  ## side by side with kubectl port-forward on the cluster
	$(BIN)/python -m benchmarks.quick

bench-reload: $(STAMP)  ## from the save of an edit to the new listener
	$(BIN)/python -m benchmarks.reload

bench-scale: $(STAMP)  ## connections, descriptors, memory and time of hundreds of targets
	$(BIN)/python -m benchmarks.scale

lock: $(STAMP)   ## pin what pyproject.toml allows
	$(BIN)/pip-compile --quiet --strip-extras --extra dev --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
