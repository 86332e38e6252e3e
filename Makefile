# The commands of the project. Nothing is needed but make and Python 3.9+ (3.10+ for `make test`, see the README).
#
#   make demo         install into .venv and show the storage at work     DEMO_DATA=path imports that file instead
#   make serve        the dashboard on the data of the demo: prints where, and a token to log in with
#   make test         everything, a real PostgreSQL included              PYTEST_ARGS='-k kv'
#   make lint         ruff, mypy --strict, import-linter, vermin
#   make bench        the figures of the README, measured here            BENCH_ARGS=...
#   make bench-memory how well conversations.search finds; needs ../shared/data    BENCH_ARGS='--data DIR'
#   make test-matrix  the SQLite core suite on each Python found; all but the oldest a part       MATRIX="3.9 3.13"
#   make wheel-check  build, install elsewhere, run the demo there
#   make floor-check  do the dependencies resolve on Python 3.9?
#   make format       ruff's fixes and formatting
#   make clean        remove what these commands made
#
# PYTHON=/path/to/python3 chooses the interpreter of .venv; JOBS=N the test processes.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
SETUP := scripts/make-venv.sh scripts/find-python.sh scripts/install.sh
export PYTHON

# Packages of ours that exist.
SOURCES := $(wildcard modules ATLAS)
CODE := $(wildcard modules ATLAS tests benchmarks examples scripts)

.PHONY: help demo serve test lint format bench bench-memory test-matrix wheel-check floor-check clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# One environment, installed in steps: each stamp says that its extras are in, and is older than pyproject.toml
# when they must be installed again.
$(VENV)/.installed: pyproject.toml $(SETUP)
	@scripts/make-venv.sh $(VENV) 3.9
	@echo "Installing atlas-storage into $(VENV)"
	@scripts/install.sh $(VENV) -e .
	@touch $@

$(VENV)/.installed-server: $(VENV)/.installed
	@echo "Installing the server extra into $(VENV)"
	@scripts/install.sh $(VENV) -e '.[server]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(SETUP)
	@scripts/make-venv.sh $(VENV) 3.10
	@echo "Installing atlas-storage with the test and postgres extras into $(VENV)"
	@scripts/install.sh $(VENV) -e '.[test,postgres]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "Installing the dev extra into $(VENV)"
	@scripts/install.sh $(VENV) -e '.[test,postgres,dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	@echo "Installing the bench extra into $(VENV)"
	@scripts/install.sh $(VENV) -e '.[test,postgres,bench]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/atlas-storage demo $(if $(DEMO_DATA),--data '$(DEMO_DATA)')

serve: $(VENV)/.installed-server
	@$(BIN)/atlas-storage serve --login --tenant demo $(SERVE_ARGS)

test: $(VENV)/.installed-test
	@$(BIN)/python -m tests.support.mongo_server
	@$(BIN)/python -m pytest -n $(JOBS) -q $(PYTEST_ARGS)

# Every check runs, so that one look shows everything that is wrong.
lint: $(VENV)/.installed-dev
	@failed=""; \
	check() { echo "== $$*"; "$(BIN)/$$@" || failed="$$failed $$1"; }; \
	check ruff check $(CODE); \
	check ruff format --check $(CODE); \
	check mypy $(SOURCES); \
	check lint-imports; \
	check vermin --quiet --no-tips --violations --target=3.9- $(SOURCES); \
	[ -z "$$failed" ] || { echo "lint failed:$$failed"; exit 1; }

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/.installed-bench
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)
	@$(if $(BENCH_ARGS),,$(BIN)/python -m benchmarks.jobs_store --rows 1000000)

bench-memory: $(VENV)/.installed-bench
	@$(BIN)/python -m benchmarks.memory_quality $(BENCH_ARGS)

test-matrix:
	@JOBS=$(JOBS) scripts/test-matrix.sh

wheel-check: $(VENV)/.installed-dev
	@scripts/wheel-check.sh $(VENV)

# Wheels only, so that nobody on 3.9 needs a compiler; the newest versions that still support 3.9 are what pip picks.
floor-check: $(VENV)/.installed
	@target=$$(mktemp -d) && trap 'rm -rf "$$target"' EXIT && $(PIP) install --quiet --dry-run --ignore-installed \
	    --python-version 3.9 --only-binary=:all: --target "$$target" . \
	  && echo "The core dependencies resolve on Python 3.9 with wheels only."

clean:
	rm -rf $(VENV) .venv-matrix .atlas dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
