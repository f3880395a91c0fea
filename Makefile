# The only entry points: people, CI and demos call these, nothing else.
#
#   make run       set up what is missing, mount a filesystem at MOUNT (default /mnt/dfs)
#   make test      set up what is missing, check the code, run every test
#   make help      the rest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := check
MAKEFLAGS += --no-print-directory --no-builtin-rules

MOUNT ?= /mnt/dfs
ARGS ?=
VENV := .venv
# Chosen by contrib/find-python.sh when the environment is made; PYTHON=... overrides.
PYTHON ?=
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
# A test run must end by itself, whatever hangs.
PYTEST := $(BIN)/python -m pytest -q

.PHONY: help run install dev test check unit sim seeds fuse cluster faults demo bench soak fmt clean unmount

help: ## What can be made
	@sed -n 's/^\([a-z][a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

run: $(RUN_STAMP) ## Mount at MOUNT=/mnt/dfs; ARGS="--bootstrap HOST:PORT --key FILE" joins a network
	@contrib/run.sh "$(BIN)/dfs-mount" "$(MOUNT)" $(ARGS)

unmount: ## Unmount MOUNT and end its node
	fusermount3 -u "$(MOUNT)"

install: $(RUN_STAMP) ## Set up .venv/bin/dfs-mount and .venv/bin/dfs, nothing else

dev: $(DEV_STAMP) ## Set up what the checks and tests need as well

# The stamp is the last thing written: an interrupted set-up starts again.
$(RUN_STAMP): pyproject.toml contrib/setup.sh contrib/find-python.sh
	@PYTHON="$(PYTHON)" contrib/setup.sh "$(VENV)" .
	@touch $@

$(DEV_STAMP): pyproject.toml $(RUN_STAMP)
	@PYTHON="$(PYTHON)" contrib/setup.sh "$(VENV)" '.[dev]' git make rsync unzip vim zip
	@touch $@

check: $(DEV_STAMP) ## Format, lint, types, layers: seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/test_tidy.py

test: check ## Everything CI runs
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} $(PYTEST) tests

unit: $(DEV_STAMP) ## Fast tests: no mounts, no child clusters
	$(PYTEST) tests/test_tidy.py tests/unit tests/contract tests/property tests/format

sim: $(DEV_STAMP) ## The deterministic simulation
	$(PYTEST) tests/sim

SIM_FIRST ?= 1
SIM_SEEDS ?= 1000
SIM_SECONDS ?= 40
SIM_JOBS ?= 1
SIM_BUG ?=

seeds: $(DEV_STAMP) ## Random lives only: SIM_FIRST=1 SIM_SEEDS=1000 SIM_JOBS=1; goes on past failures
	$(BIN)/python -m contrib.seeds --first $(SIM_FIRST) --seeds $(SIM_SEEDS) --seconds $(SIM_SECONDS) --jobs $(SIM_JOBS) --bug "$(SIM_BUG)"

fuse: $(DEV_STAMP) ## Real mounts of one node
	$(PYTEST) tests/fuse

cluster: $(DEV_STAMP) ## Real processes on loopback
	$(PYTEST) tests/cluster

faults: $(DEV_STAMP) ## Random faults on real nodes; DFS_FAULT_SECONDS and DFS_FAULT_SEED choose
	$(PYTEST) tests/cluster/test_faults.py

demo: $(RUN_STAMP) ## Three peers on this machine, two mounts, one kill -9; cleans up after itself
	@$(BIN)/python -m contrib.demo $(ARGS)

bench: $(RUN_STAMP) ## Local directory, one node, second mount of three nodes: figures and ratios
	@$(BIN)/python -m contrib.bench $(ARGS)

soak: $(RUN_STAMP) ## Mixed load on three nodes for ARGS="--seconds 3600": memory flat, bounds kept
	@$(BIN)/python -m contrib.soak $(ARGS)

fmt: $(DEV_STAMP) ## Format and fix what can be fixed by a program
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and caches (never state directories)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
