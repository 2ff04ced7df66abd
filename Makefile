# KASOKO's commands. `make` alone lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo run test test-long check fmt cover bench pictures soak mutate lint lock stop clean

PYTHON ?= $(shell for name in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_SOAK := .venv/.installed-soak
# Extras stay in the lock. Without them pip's resolver looks at newer releases first, which have no hash here.
UV := uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'
# Tests of one file stay together and the longest files come first, because each process has its own database.
# Four processes on two cores: journeys wait as much as they work.
PROCESSES ?= 4
PYTEST = $(BIN)/python -m pytest --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder
# pip writes its cache under HOME, and some users have no HOME.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-cache-dir

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## a market from stakes to payouts, with all processes and a simulated M-Pesa, then stop
	@$(BIN)/python -m api.demo

run: $(INSTALLED) ## the same, and keep it running until Ctrl-C
	@$(BIN)/python -m api.demo --stay

test: $(INSTALLED) ## the tests, on a real PostgreSQL and Redis (ARGS='-k name -x' is passed on)
	$(PYTEST) -m "not long" --durations=30 $(ARGS)

test-long: $(INSTALLED) ## the tests that take longer: seeds, kills and journeys of real processes
	$(PYTEST) -m long --durations=10 $(ARGS)

check: lint test test-long ## all that CI runs

cover: $(INSTALLED) ## the tests with coverage; htmlcov/index.html shows untested lines
	$(PYTEST) -m "not long" --cov --cov-report=html --cov-report=term $(ARGS)

bench: $(INSTALLED) ## measured costs, each beside its floor (BENCH=full for a million bets, ARGS='--only settle'); writes docs/bench.md
	$(BIN)/python -m bench $(ARGS)

pictures: $(INSTALLED) ## take the pictures of docs/console.md again, in a browser
	KASOKO_PICTURES=docs/console $(BIN)/python -m pytest -q api/tests/console/test_browser.py -k barrier

soak: $(INSTALLED_SOAK) ## the long runs: simulation, planted bugs, kills, fuzz (ARGS='--quick --only kills'); writes docs/soak.md
	$(BIN)/python -m soak $(ARGS)

mutate: $(INSTALLED) ## change the code in small ways and see if the tests notice (ARGS='--module users/auth.py --count 10')
	$(BIN)/python -m soak.mutation $(ARGS)

fmt: $(INSTALLED) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(INSTALLED) ## style, spelling, types, import directions, forgotten migrations, Django's checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check

lock: $(INSTALLED) ## pin requirements*.txt again from requirements*.in (needs uv)
	$(UV) requirements.in -o requirements.txt
	$(UV) requirements-embedded.in -o requirements-embedded.txt
	$(UV) requirements-dev.in -o requirements-dev.txt
	$(UV) requirements-soak.in -o requirements-soak.txt

stop: ## stop the PostgreSQL and Redis of this checkout
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -P api/embedded stop

clean: ## stop them and remove their data, .venv and all caches
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -P api/embedded erase
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "KASOKO needs Python 3.11 or newer: sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv (about a minute, once)"
	@test -x $(BIN)/python && $(BIN)/python -c '' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@$(PIP) install --require-hashes --requirement requirements-dev.txt
	@touch $@

$(INSTALLED_SOAK): requirements-soak.txt $(INSTALLED)
	@$(PIP) install --require-hashes --requirement requirements-soak.txt
	@touch $@
