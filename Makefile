# `make demo` and `make test` need Python 3.11 or newer and nothing else. Everything goes into .venv; no step needs root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
QUIET := FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

.PHONY: help install demo test test-slow test-outage lint format fuzz chaos endurance bench bench-scale bench-secagg gain bundle clean

help:
	@echo "make install   make .venv and install Dure with everything for development"
	@echo "make demo      found a consortium on this machine and train (ARGS='--data DIR --exit --report FILE')"
	@echo "make test      run the tests (some 18 minutes on two cores)"
	@echo "make test-slow     a stock SuperLink, kills and full disks, sixty rounds, 17 agents: what CI runs besides (4 minutes)"
	@echo "make test-outage   cut every link for 5 minutes in mid-round, twice (DURE_OUTAGE_SECONDS=300)"
	@echo "make lint      ruff, mypy, import rules"
	@echo "make bench     time an encrypted round, 3 firms and 10 million parameters, as JSON"
	@echo "make bench-secagg   the aggregation against SecAgg+, plaintext and memcpy, as JSON (20 minutes)"
	@echo "make bench-scale    100 agents in one job: a round's time, the server's memory, what idle agents cost, as JSON"
	@echo "make chaos     kill, cut and fill everything at every phase, then random lists (ARGS='--lists 200 --seed 1'; an hour)"
	@echo "make endurance 500 rounds of a small job: is any process's memory or number of open files growing?"
	@echo "make fuzz      feed mutated bytes to every decoder (ARGS='--seconds 600 --target messages')"
	@echo "make gain      alone, federated and pooled over five seeds on simulated data (ARGS='--data DIR')"
	@echo "make bundle    the agent as one signed folder for a site without a network (ARGS='--key release.key')"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Dure needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)…"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Dure and what it needs (a few minutes the first time)…"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
	@echo "Installed. Commands: $(BIN)/dure, $(BIN)/dure-server, $(BIN)/dure-agent"

demo: $(STAMP)
	@$(QUIET) $(BIN)/dure demo $(ARGS)

test: $(STAMP)
	@echo "Running the tests…"
	@$(QUIET) $(BIN)/python -m pytest $(ARGS)

test-slow: $(STAMP)
	@$(QUIET) $(BIN)/python -m pytest -m slow $(ARGS)

test-outage: $(STAMP)
	@$(QUIET) $(BIN)/python -m pytest -m long -s tests/end_to_end/test_job_over_bad_links.py $(ARGS)

lint: $(STAMP)
	@echo "ruff…" && $(BIN)/ruff check && $(BIN)/ruff format --check
	@echo "mypy…" && $(BIN)/mypy
	@echo "import rules…" && $(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff check --fix --quiet; $(BIN)/ruff format

bench-secagg: $(STAMP)
	@$(QUIET) $(BIN)/dure bench secagg --json $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(ARGS)

chaos: $(STAMP)
	@$(QUIET) $(BIN)/python -m tests.chaos $(ARGS)

endurance: $(STAMP)
	@$(QUIET) $(BIN)/python -m tests.chaos.endurance $(ARGS)

bench-scale: $(STAMP)
	@$(QUIET) $(BIN)/dure bench scale --json $(ARGS)

bench: $(STAMP)
	@$(QUIET) $(BIN)/dure bench round --firms 3 --parameters 10000000 --json

gain: $(STAMP)
	@$(QUIET) $(BIN)/dure bench gain $(ARGS)

bundle: $(STAMP)
	@$(BIN)/python -m dure_lab.bundle $(ARGS)

clean:
	rm -rf $(VENV) dure-demo
