# Two commands for a fresh machine: `make demo` and `make test`. The rest is for developers.
# Each makes its own virtual environment and starts the replica set that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check bench format lint types clean

demo: $(VENV)/demo
	@$(BIN)/python scripts/replay.py $(if $(TRACE),"$(TRACE)")

test: $(VENV)/dev
	$(BIN)/python -m pytest $(TESTS)

check: lint types test

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[local,cli]"
	@touch $@

$(VENV)/bench: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[bench]"
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[dev]"
	@touch $@
