# `make up` and `make test` need only Python 3.11 or later; `make help` lists all targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 1800
SOAK_SCHEDULES ?= 5000
SOAK_STORMS ?= 500
LOCK_AGE ?= 7 days
E2E ?= tests/e2e tests/chaos
TESTS := not e2e

# Install only files whose hash is in a lock, and only wheels: building an sdist runs code.
PIP := -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --only-binary :all:
# Write bytecode: the tests start many programs, and each would compile krelay again.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# The sbom, audit and lock targets have a separate environment: their tools need other packages. So
# have the targets of a release.
TOOLS := .venv-audit/bin
TOOLS_STAMP := .venv-audit/.installed
DOCS := .venv-docs/bin
DOCS_STAMP := .venv-docs/.installed
RELEASE := .venv-release/bin
RELEASE_STAMP := .venv-release/.installed

.DEFAULT_GOAL := help
.PHONY: help up test test-fast coverage test-on check format lint spelling types layers e2e apps \
  soak fuzz profile bench bench-quick bench-reload bench-scale docs docs-serve films lock sbom audit pyz \
  installs release clean

help:            ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# forbiddenfruit has no wheel: the locked setuptools builds it.
$(STAMP): pyproject.toml requirements-build.lock requirements-dev.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(LOCKED) -r requirements-build.lock
	@$(BIN)/python $(LOCKED) --no-binary forbiddenfruit --no-build-isolation --use-pep517 \
	  -r requirements-dev.lock
	@$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLS_STAMP): requirements-audit.lock
	@test -x $(TOOLS)/python || $(PYTHON) -m venv .venv-audit
	@$(TOOLS)/python $(LOCKED) -r requirements-audit.lock
	@touch $@

$(DOCS_STAMP): requirements-docs.lock
	@test -x $(DOCS)/python || $(PYTHON) -m venv .venv-docs
	@$(DOCS)/python $(LOCKED) -r requirements-docs.lock
	@touch $@

$(RELEASE_STAMP): requirements-release.lock
	@test -x $(RELEASE)/python || $(PYTHON) -m venv .venv-release
	@$(RELEASE)/python $(LOCKED) -r requirements-release.lock
	@touch $@

up: $(STAMP)     ## relay the quick start's targets with an embedded agent: no cluster needed
	@exec $(BIN)/python examples/quickstart.py

test: $(STAMP)   ## run everything that needs no cluster
	$(PYTEST) -m '$(TESTS)'

test-fast: $(STAMP)  ## run the tests that start no program and no browser
	$(PYTEST) -m 'not (e2e or process or browser)'

coverage: $(STAMP)  ## run test, and compare its coverage with the bars
	$(PYTEST) -m 'not e2e' --cov --cov-report=
	$(BIN)/python .ci/bars.py

test-on:         ## run test on another Python: make test-on PYTHON=python3.13
	@$(MAKE) test TESTS='not (e2e or browser)' VENV=.venv-$$($(PYTHON) -c 'import platform; print(platform.python_version())')

check: format lint spelling types layers docs coverage  ## run the checks and tests that a commit must pass

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

spelling: $(STAMP)
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

e2e: $(STAMP)    ## test on a real cluster: $KUBECONFIG, or one that it starts (root)
	$(BIN)/python -m pytest -m e2e $(E2E)

apps: $(STAMP)   ## relay real applications on the real cluster, by each way (root; 10 min)
	$(BIN)/python -m pytest -m e2e tests/apps

soak: $(STAMP)   ## run half an hour of faults on the real cluster, and thousands of schedules without
	KRELAY_SCHEDULES=$(SOAK_SCHEDULES) KRELAY_EDITS=1000 $(BIN)/python -m pytest -q --timeout 0 \
	  tests/datapath/test_chaos.py tests/wire/test_properties.py \
	  tests/supervisor/test_reload.py
	$(BIN)/python -m tests.storm.run --runs $(SOAK_STORMS)
	$(BIN)/python -m tests.chaos.run --seconds $(SOAK_SECONDS) $(SOAK)

fuzz: $(STAMP)   ## fuzz every target for FUZZ_SECONDS (600), two at a time (Linux)
	@$(BIN)/python $(LOCKED) -r requirements-fuzz.lock
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

# BENCH holds options: make bench-quick BENCH="--only 'one stream' --json FILE".
bench: $(STAMP)  ## measure all that docs/performance.md reports, and write it there (25 min)
	$(BIN)/python -m benchmarks.run --whole $(BENCH)

bench-quick: $(STAMP)  ## compare krelay with kubectl port-forward on the cluster (3 min)
	$(BIN)/python -m benchmarks.run $(BENCH)

profile: $(STAMP)  ## print the CPU time of each process of a transfer, draw flame graphs (root)
	@$(BIN)/python $(LOCKED) -r requirements-profile.lock
	$(BIN)/python -m benchmarks.profile

bench-reload: $(STAMP)  ## measure the time from saving an edit to the new listener
	$(BIN)/python -m benchmarks.reload

bench-scale: $(STAMP)  ## measure connections, descriptors, memory and time of hundreds of targets
	$(BIN)/python -m benchmarks.scale

docs: $(DOCS_STAMP)  ## build the documentation site into build/docs; a broken link fails
	@$(DOCS)/python .ci/site.py

docs-serve: $(DOCS_STAMP)  ## serve the documentation site, with every edit
	@$(DOCS)/python .ci/site.py serve

films: $(STAMP)  ## record the films of the README from krelay on the real cluster (root)
	$(BIN)/python -m tests.docs.films

# The locks are valid for each Python and system that krelay runs on. Pinned versions stay, unless
# LOCK=--upgrade. Releases younger than LOCK_AGE are ignored: a bad one is often found within days.
lock: $(TOOLS_STAMP)  ## pin what pyproject.toml allows, with hashes (LOCK=--upgrade: the newest)
	@compile() { $(TOOLS)/uv pip compile --quiet --universal --python-version 3.11 --no-header \
	  --generate-hashes --strip-extras --exclude-newer '$(LOCK_AGE)' $(LOCK) "$$@"; } && \
	compile pyproject.toml --extra speed -o requirements.lock && \
	compile --group build -o requirements-build.lock && \
	compile pyproject.toml --extra speed --extra mcp --extra dev -c requirements.lock \
	  -c requirements-build.lock -o requirements-dev.lock && \
	compile --group fuzz -o requirements-fuzz.lock && \
	compile --group profile -o requirements-profile.lock && \
	compile --group docs -o requirements-docs.lock && \
	compile --group audit -o requirements-audit.lock && \
	compile --group release -c requirements-build.lock -c requirements-audit.lock \
	  -o requirements-release.lock

sbom: $(TOOLS_STAMP)  ## write dist/krelay.cdx.json: krelay's runtime packages (CycloneDX)
	@$(TOOLS)/python .ci/sbom.py dist/krelay.cdx.json

audit: $(TOOLS_STAMP)  ## check the locked packages for known vulnerabilities
	@$(TOOLS)/python .ci/audit.py requirements*.lock

pyz: $(RELEASE_STAMP)  ## write dist/krelay.pyz: krelay and its packages in one file for this platform
	@$(RELEASE)/python -m release.build --directory dist --wheel
	@$(RELEASE)/python -m release.zipapp dist/krelay-*.whl dist/krelay.pyz

installs: $(RELEASE_STAMP)  ## install and start krelay in each way, on every Python of this machine
	@$(RELEASE)/python -m release.installs

# TAG makes what is not ready to be published an error; the files name REPOSITORY's downloads.
release: $(RELEASE_STAMP) sbom  ## make and check all that a release publishes, into dist/release
	@$(RELEASE)/python -m release $(if $(TAG),--tag $(TAG)) \
	  $(if $(REPOSITORY),--repository $(REPOSITORY))

clean:
	rm -rf $(VENV) .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
