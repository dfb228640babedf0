# From a fresh clone, `make demo`, `make own-task` and `make test` do everything, each with its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Recipes with && and traps want one shell.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help demo own-task test docs-test lint format docs wheel clean emulated-arm64 emulated-armhf

help:
	@echo "make demo    set up without torch, then search three device settings on this machine (2 to 4 minutes)"
	@echo "make own-task"
	@echo "             set up with torch, then train a supernet on images of textures, search, fine-tune and measure"
	@echo "             (under an hour on two cores; docs/own-task.md, ARGS='--data FOLDER' for images of your own)"
	@echo "make test    set up with everything, then lint and test"
	@echo "make docs-test"
	@echo "             run every command of every page as it is written (half an hour; needs root, see docs/development.md)"
	@echo "make lint    ruff, mypy and the import rules"
	@echo "make format  rewrite the sources in the project's style"
	@echo "make wheel   write the wheel to dist, for devices and containers"
	@echo "make docs    build the site, with the pages of the Python interface, in build/docs"
	@echo "make emulated-arm64, make emulated-armhf"
	@echo "             install and run the agent on an emulated Raspberry Pi (needs root; see docs/development.md)"
	@echo "make clean   delete the environment, all caches, and what demo and own-task left"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

# One stamp for each set-up, so that a second run starts at once.
$(VENV)/.demo-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up fleetnas in $(VENV) (once; about a minute) ..."
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[agent,coordinator,dashboard,digits]'
	@touch $@

$(VENV)/.test-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up the tests in $(VENV) (once; a few minutes) ..."
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[agent,litert,coordinator,dashboard,postgres,parquet,secure,digits,export,train,cluster,mlflow,dev]'
	@touch $@ $(VENV)/.demo-ready

demo: $(VENV)/.demo-ready
	$(BIN)/fleetnas demo $(ARGS)

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.own-task-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up training in $(VENV) (once; a few minutes) ..."
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[agent,litert,coordinator,digits,train]' scikit-image
	@touch $@ $(VENV)/.demo-ready

own-task: $(VENV)/.own-task-ready
	$(BIN)/python benchmarks/own_task.py --without-scratch $(ARGS)

test: $(VENV)/.test-ready lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

docs-test: $(VENV)/.test-ready
	$(BIN)/python -m pytest -n 0 -m "soak or not soak" tests/documents $(ARGS)

emulated-arm64 emulated-armhf: emulated-%: $(VENV)/.test-ready
	$(BIN)/python tests/emulated $* $(ARGS)

format: $(VENV)/.test-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --site-dir build/docs
	$(BIN)/python docs/api_pages.py build/docs/api

# setuptools leaves files behind where it builds: one that was removed from the sources would still be in the wheel.
wheel: $(BIN)/python
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .
	@rm -rf build/lib build/bdist.*
	@ls dist/*.whl

clean:
	rm -rf $(VENV) *.egg-info build dist fleetnas-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
