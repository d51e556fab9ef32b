# `make serve` and `make test` are all that a newcomer needs; both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# In the order of their imports.
PACKAGES := libs/proto libs/common libs/engine libs/worker libs/client libs/load \
	services/prefill services/decode services/router services/planner services/frontend sim cli
EDITABLE := $(foreach package,$(PACKAGES),--editable $(package)) --editable "libs/engine[torch]"
SOURCES := $(foreach package,$(filter-out libs/proto,$(PACKAGES)),$(package)/src)
MANIFESTS := constraints.txt $(foreach package,$(PACKAGES),$(package)/pyproject.toml)

.PHONY: serve test check lint types stubs protos protos-lint bench clean help
.DEFAULT_GOAL := help

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

serve: $(VENV)/.serve  ## Set up and start the whole stack with the shipped model; Ctrl-C stops it
	@exec $(BIN)/tandem up

test: $(VENV)/.dev  ## Set up and run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types stubs protos-lint  ## Lint, type check, and compare generated code with its sources

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy $(SOURCES) scripts bench models

stubs: $(VENV)/.dev  ## Fail when libs/proto is not what protos/ says
	$(BIN)/python scripts/generate_protos.py --check

protos: $(VENV)/.dev  ## Regenerate libs/proto from protos/
	$(BIN)/python scripts/generate_protos.py

protos-lint: .tools/node_modules/.bin/buf  ## buf, STANDARD style (needs npm)
	cd protos && ../$< lint

bench: $(VENV)/.dev  ## Measure, and write bench/results/*.json (see docs/performance.md)
	$(BIN)/python bench/serving.py

clean:  ## Remove everything that make made
	rm -rf $(VENV) .tools bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Tandem needs Python 3.11 or later; '$(PYTHON)' is not. Install one, then: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.serve: $(MANIFESTS) | $(BIN)/python
	@echo "Setting up $(VENV); the first time takes a minute or two."
	@echo "  1/3 build tools ..."
	@$(PIP) setuptools
	@echo "  2/3 torch, the largest part ..."
	@$(PIP) torch
	@echo "  3/3 Tandem and what else it needs ..."
	@$(PIP) --no-build-isolation $(EDITABLE)
	@touch $@

$(VENV)/.dev: $(VENV)/.serve requirements-dev.txt
	@echo "Adding the developers' tools ..."
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

.tools/node_modules/.bin/buf:
	@command -v npm >/dev/null || { echo "buf comes from npm, which is not on this machine: install Node.js"; exit 1; }
	npm install --silent --no-audit --no-fund --prefix .tools @bufbuild/buf@1.75.0
	@touch $@
