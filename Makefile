# Every target sets up .venv from nothing if needed. Variables to set on the command line or in the environment:
#   PYTHON       a Python 3.11 or newer (default: python3)
#   TORCH_INDEX  an extra package index for torch, used only when set. Linux machines without an NVIDIA GPU save about
#                3 GB with TORCH_INDEX set to the CPU wheel index of pytorch.org
PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup quickstart test test-slow lint format types check-recipes bench clean

help:
	@echo "make quickstart     set up .venv, then train the first model (minutes, CPU)"
	@echo "make test           set up .venv, then run the tests"
	@echo "make test-slow      the tests that take minutes as well"
	@echo "make lint types     style and type checks; make format applies the style"
	@echo "make check-recipes  validate every recipe that needs no download"
	@echo "make bench          run the benchmarks (hours); see benchmarks/README.md"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "assay needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/assay train quickstart

test: $(READY)
	$(BIN)/python -m pytest -q

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m 'not gpu'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

check-recipes: $(READY)
	$(BIN)/assay check quickstart

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist *.egg-info
