# `make demo` and `make test` need only Python. They make a virtual environment and start a replica
# set. The other targets are for developers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The lock files in requirements/ give the versions and hashes to install. `make lock` updates them.
# `make test-newest` tests with the newest versions instead.
LOCKED ?= yes
install = $(if $(filter yes,$(LOCKED)),\
	$(PIP) --require-hashes --requirement requirements/$(1).txt && \
	$(PIP) --no-deps --no-build-isolation --editable . , \
	$(PIP) --upgrade --upgrade-strategy eager --editable ".[$(2)]")

PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: demo example test test-all test-newest lock docs faults faults-short drill mutants check wheel bench \
	soak format lint types clean

demo: $(VENV)/demo
	@$(BIN)/python scripts/replay.py $(if $(TRACE),"$(TRACE)")

# A FastAPI application. Its pages are at http://127.0.0.1:8000/docs.
example: $(VENV)/dev
	@$(BIN)/python examples/fastapi_app.py

# Tests every module and every promise once, on real replica sets. Two processes, each with its own.
test: $(VENV)/dev
	@echo "The tests take about 10 minutes on two cores (make test-all, which CI runs: 15)."
	CREDIT_MONGO_HISTORIES=20 $(PYTEST) --quick $(TESTS)

# The whole suite: every case, where `make test` takes a sample.
test-all: $(VENV)/dev
	@echo "All tests take about 15 minutes on two cores."
	$(PYTEST) $(TESTS)

# `make test` with the newest versions that pyproject.toml allows, in a separate environment.
test-newest:
	$(MAKE) test VENV=.venv-newest LOCKED=no

# Far more of each disturbance than `make test`. Prints how many there were.
faults: $(VENV)/dev
	@echo "This kills servers and clients by the hundreds, for about an hour (KILLS=20 for less)."
	FAULTS_SERVER_KILLS=$(or $(KILLS),200) FAULTS_CLIENT_KILLS=$(or $(KILLS),200) \
	FAULTS_ELECTIONS=$(or $(ELECTIONS),100) FAULTS_ROLLBACKS=$(or $(ROLLBACKS),20) \
	FAULTS_FREEZES=$(or $(FREEZES),60) FAULTS_CONFLICT_SECONDS=20 FAULTS_CALLERS=100 \
	$(if $(SEED),FAULTS_SEED=$(SEED)) $(BIN)/python -m pytest tests/faults $(TESTS)

# Loses a database that is charged all the time, and restores it: ROUNDS times, with a backup every
# SECONDS.
drill: $(VENV)/dev
	BACKUP_DRILLS=$(or $(ROUNDS),10) BACKUP_SECONDS=$(or $(SECONDS),5) \
	$(if $(SEED),FAULTS_SEED=$(SEED)) \
	$(BIN)/python -m pytest tests/faults/test_backup_drill.py -k drill_ $(TESTS)

# A random sample of the cases, with every operation, failure and disturbance, and a short soak.
faults-short: $(VENV)/dev
	@echo "The sample of faults and the soak take about 5 minutes on two cores."
	FAULTS_SHARE=0.1 FAULTS_CALLERS=30 FAULTS_ELECTIONS=1 FAULTS_FREEZES=1 FAULTS_SERVER_KILLS=1 \
	FAULTS_CONFLICT_SECONDS=0.5 FAULTS_ROUNDS_WITHOUT_SERVER=10 SOAK_SECONDS=30 \
	$(if $(SEED),FAULTS_SEED=$(SEED) SOAK_SEED=$(SEED)) \
	$(BIN)/python -m pytest tests/faults tests/soak $(TESTS)

# Makes a release's two files, and uses the wheel in an empty environment.
wheel: $(VENV)/dev
	@echo "Building the package and using it takes about a minute."
	@$(BIN)/python scripts/check_wheel.py --keep dist

# Writes site/. Fails on a broken link or anchor.
docs: $(VENV)/dev
	$(BIN)/zensical build --clean --strict
	$(BIN)/python -m tests.site_links site

check: lint types docs test

# The whole run writes its data and charts to benchmarks/, and its tables into the two READMEs.
# BENCH="--only lanes --json lanes.json" for others: see BENCH=--help.
bench: $(VENV)/bench
	@$(if $(BENCH),,echo "This measures for about 18 minutes. Nothing else should run meanwhile.")
	$(BIN)/python -m benchmarks $(or $(BENCH),--publish)

soak: $(VENV)/dev
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),180) \
	$(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(SEED),--seed $(SEED))

# Plants bugs, one at a time, and checks that the tests find them.
mutants: $(VENV)/dev
	@echo "Each bug takes half a minute, all of them more than an hour."
	$(BIN)/python -m tests.mutants $(BUG)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# basedpyright asks the first python on PATH for packages, and does not find editable ones.
PUBLIC_TYPES = PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR):$(CURDIR)/tests/typing" \
	basedpyright --ignoreexternal --verifytypes

# mypy checks the code. basedpyright checks that every public name has a complete type.
types: $(VENV)/dev
	$(BIN)/mypy
	$(PUBLIC_TYPES) credit_mongo
	$(PUBLIC_TYPES) pytest_credit_mongo

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-newest dist build site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "Installing the demo into $(VENV): about 20 seconds ..."
	@$(call install,demo,demo)
	@touch $@

$(VENV)/bench: requirements/bench.txt pyproject.toml | $(BIN)/python
	@echo "Installing the benchmarks into $(VENV): about 30 seconds ..."
	@$(call install,bench,bench)
	@touch $@

$(VENV)/dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing the development tools into $(VENV): about a minute ..."
	@$(call install,dev,dev)
	@touch $@

# Versions and hashes for every supported Python, so that a commit installs the same files on every
# machine. The second and third file use the first one's versions, because all share an environment.
LOCK = $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	--generate-hashes --no-annotate --no-emit-index-url \
	--custom-compile-command "make lock" pyproject.toml requirements/build.in

lock: | $(BIN)/python
	$(PIP) uv
	$(LOCK) --extra dev --output-file requirements/dev.txt
	$(LOCK) --extra demo -c requirements/dev.txt --output-file requirements/demo.txt
	$(LOCK) --extra bench -c requirements/dev.txt --output-file requirements/bench.txt
