# Everything runs in an environment of its own: .venv for python3, .venv-3.12 for PYTHON=python3.12.
#
#   make demo                       see it work; DELAYED_URL=redis://localhost:6379 make demo: on that store
#   make test [PYTHON=python3.12]   lint, types and tests; PYTEST_ARGS="tests/test_cli.py -x" chooses;
#                                   DELAYED_ALL=1 make test: in every kind of worker on every store
#   make soak                       200 rounds of every way to die in every kind of worker: about an hour
#   make chaos                      kill whatever there is, at random, and judge; CHAOS_ARGS="--store redis --seconds 600"
#   make crashpoints                kill at every point of every operation, and judge; CRASH_ARGS="--long --jobs 4"
#   make campaign                   the published proof: rows of harm x stores x kinds of workers, for hours;
#                                   CAMPAIGN_ARGS="--only 'K2 redis preforked'" repeats one
#   make fuzz                       every decoder, 200,000 runs each (RUNS=...), guided by coverage; TARGETS=header chooses
#   make bench                      benchmarks
#   make bench-peers                beside its peers, which it installs in build/; PEERS_ARGS="--only rq,huey --quick"
#   make bench-growth               with more workers, tasks, bytes and queues; GROWTH_ARGS="--only waiting --stores redis"
#   make clean                      remove the environments and caches

PYTHON ?= python3
PYTEST_ARGS ?=
CHAOS_ARGS ?=
CRASH_ARGS ?=
CAMPAIGN_ARGS ?=
PEERS_ARGS ?=
GROWTH_ARGS ?=
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(VERSION))
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

# A store needs its driver; the embedded file needs nothing.
DEMO_EXTRA := $(if $(filter redis% unix:%,$(DELAYED_URL)),-redis)$(if $(filter postgres%,$(DELAYED_URL)),-postgres)
DEMO_EXTRA := $(DEMO_EXTRA)$(if $(filter mongodb%,$(DELAYED_URL)),-mongo)

.DELETE_ON_ERROR:
.PHONY: test lint types fuzz soak chaos crashpoints campaign demo bench bench-peers bench-growth clean

# Bytecode first: the tests start thousands of interpreters, which would compile all anew where none may be written.
test: lint types
	$(VENV)/bin/python -m compileall -q delayed tests
	$(VENV)/bin/python -m pytest -n 4 $(PYTEST_ARGS)

soak: $(VENV)/installed-test
	DELAYED_SOAK=1 $(VENV)/bin/python -m pytest -n 2 tests/workers/test_soak.py

chaos: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.chaos $(CHAOS_ARGS)

crashpoints: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.chaos.crashpoints $(CRASH_ARGS)

campaign: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.chaos.campaign $(CAMPAIGN_ARGS)

# Atheris has wheels for some Pythons on Linux only, so that it is no part of what all tests need.
fuzz: $(VENV)/installed-test
	$(VENV)/bin/python -c 'import atheris' 2>/dev/null || $(PIP) install --only-binary :all: 'atheris>=2.3' || \
		{ echo 'error: there is no wheel of atheris for this Python ($(VERSION)) and system' >&2; exit 1; }
	$(VENV)/bin/python -m tests.fuzz $(TARGETS)

lint: $(VENV)/installed-test
	$(VENV)/bin/python -m ruff check .

types: $(VENV)/installed-test
	$(VENV)/bin/python -m mypy delayed

demo: $(VENV)/installed$(DEMO_EXTRA)
	$(VENV)/bin/python -m delayed demo

bench: $(VENV)/installed-test
	$(VENV)/bin/python -m benchmarks

bench-peers: $(VENV)/installed-test
	$(VENV)/bin/python -m benchmarks.peers $(PEERS_ARGS)

bench-growth: $(VENV)/installed-test
	$(VENV)/bin/python -m benchmarks.growth $(GROWTH_ARGS)

# installed, installed-redis, installed-test: stamps, each younger than what it was made from.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[$*]'
	@touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: Python 3.11 or later is needed; name one that you have: make test PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf .venv .venv-* build .mypy_cache .ruff_cache .pytest_cache *.egg-info
