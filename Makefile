# The two commands of the README, and what they are made of. Each does all of its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit gpu lint format services demo-kills bench-checkpoint checkpoint-faults \
	checkpoint-tearing hangs clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
STARTED := $(shell date +%s)

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## Make .venv with everything for development

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 ..."; exit 2; }
	@# On a bare Debian `python3 -m venv` lacks ensurepip until python3-venv is there.
	@$(PYTHON) -m venv .venv 2>/dev/null \
		|| { rm -rf .venv; apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; } \
		|| { echo "Could not make .venv. As root run: apt-get install python3-venv"; exit 2; }
	@echo "Installing into .venv: a minute or two, and 2.1 GB with a CPU build of torch ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
	@echo "Set-up took $$(($$(date +%s) - $(STARTED))) s."

demo: setup ## The whole path on handwritten digits, in about a minute
	@$(BIN)/production-ml demo
	@echo "make demo took $$(($$(date +%s) - $(STARTED))) s, set-up included."

test: setup services lint ## Everything that CI runs
	@MAKE_STARTED=$(STARTED) $(BIN)/python -m pytest -m "not gpu" --durations 25

unit: setup ## The tests that take under a minute
	@$(BIN)/python -m pytest tests/unit

gpu: setup ## The tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

lint: setup ## Style, types, layers
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## Bring the sources into shape
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

services: ## Install the real services that tests talk to: Chromium, Prometheus, an S3 server
	@tests/install_services.sh

demo-kills: setup ## Twenty demos, each with a kill of a random worker at a random step, and Ctrl-C at every station
	@PRODUCTION_ML_DEMO_RUNS=20 $(BIN)/python -m pytest tests/faults/test_demo_kills.py -s --timeout 0
	@PRODUCTION_ML_DEMO_STATIONS=all $(BIN)/python -m pytest tests/integration/test_demo.py -k ctrl_c

bench-checkpoint: setup ## Checkpoints against raw writes, memcpy and other libraries, in about an hour
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python benchmarks/checkpoint.py --markdown docs/benchmarks/checkpoint.md $(BENCH)

checkpoint-faults: setup ## A thousand real faults against checkpoints, ours and four others', as a table
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@mkdir -p build
	@PYTHONPATH=tests/faults $(BIN)/python -m checkpoint_harness --systems all --json build/checkpoint-faults.json

checkpoint-tearing: setup ## A thousand saves while the training goes on and changes everything
	@PRODUCTION_ML_CHECKPOINT_SAVES=$${PRODUCTION_ML_CHECKPOINT_SAVES:-1000} \
		$(BIN)/python -m pytest tests/faults/test_checkpoint_tearing.py -s --timeout 0

hangs: setup ## Every way to hang, and every long pause that is no hang
	@PRODUCTION_ML_HANGS=all $(BIN)/python -m pytest tests/faults/test_hangs.py --timeout 0

clean: ## Remove the environment and what tools have cached
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
