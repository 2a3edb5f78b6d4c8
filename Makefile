# Two commands for a fresh machine: `make demo` and `make test`. The rest is for developers.
# Each makes its own virtual environment and starts the replica set that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo example test docs faults faults-short mutants check bench soak format lint types clean

demo: $(VENV)/demo
	@$(BIN)/python scripts/replay.py $(if $(TRACE),"$(TRACE)")

# An application on FastAPI, with all that it does at http://127.0.0.1:8000/docs.
example: $(VENV)/dev
	@$(BIN)/python examples/fastapi_app.py

test: $(VENV)/dev
	$(BIN)/python -m pytest $(TESTS)

# Far more of each disturbance than `make test`; prints the numbers reached.
faults: $(VENV)/dev
	FAULTS_SERVER_KILLS=$(or $(KILLS),200) FAULTS_CLIENT_KILLS=$(or $(KILLS),200) \
	FAULTS_ELECTIONS=$(or $(ELECTIONS),100) FAULTS_ROLLBACKS=$(or $(ROLLBACKS),20) \
	FAULTS_FREEZES=$(or $(FREEZES),60) FAULTS_CONFLICT_SECONDS=20 FAULTS_CALLERS=100 \
	$(if $(SEED),FAULTS_SEED=$(SEED)) $(BIN)/python -m pytest tests/faults $(TESTS)

# A part of the cases, by chance: each operation, each failure, each disturbance; and a short soak.
faults-short: $(VENV)/dev
	FAULTS_SHARE=0.1 FAULTS_CALLERS=30 FAULTS_ELECTIONS=1 FAULTS_FREEZES=1 FAULTS_SERVER_KILLS=1 \
	FAULTS_CONFLICT_SECONDS=0.5 FAULTS_ROUNDS_WITHOUT_SERVER=10 SOAK_SECONDS=30 \
	$(if $(SEED),FAULTS_SEED=$(SEED) SOAK_SEED=$(SEED)) \
	$(BIN)/python -m pytest tests/faults tests/soak $(TESTS)

# Into site/; a link or an anchor that leads nowhere fails it.
docs: $(VENV)/docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python -m tests.site_links site

check: lint types docs test

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(VENV)/dev
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),180) \
	$(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(SEED),--seed $(SEED))

# Plants bugs, one at a time, and sees whether the tests find them.
mutants: $(VENV)/dev
	$(BIN)/python -m tests.mutants $(BUG)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# It asks the first python on PATH where packages are, and does not see those that are editable.
PUBLIC_TYPES = PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR):$(CURDIR)/tests/typing" \
	basedpyright --ignoreexternal --verifytypes

# Inside, and what those see who install it: each public name has a type that is told in full.
types: $(VENV)/dev
	$(BIN)/mypy
	$(PUBLIC_TYPES) credit_mongo
	$(PUBLIC_TYPES) pytest_credit_mongo

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist build site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[local,cli]"
	@touch $@

$(VENV)/bench: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[bench]"
	@touch $@

$(VENV)/docs: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[docs]"
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[dev]"
	@touch $@
