# `make test` and `make demo` each do their own set-up. PYTHON=/path/to/python3.11 picks the interpreter that .venv is
# made with; without it scripts/setup.sh looks for one.
.DEFAULT_GOAL := help
PYTHON ?=
export PYTHON
MINUTES ?= 10
BIN := .venv/bin

.PHONY: help setup lint test unit demo bench soak clean distclean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv, or bring it up to date, from the pinned packages (4 GB; minutes once, then nothing)
	@scripts/setup.sh

lint: setup ## ruff check, ruff format --check, and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup lint ## Lint, then every test
	$(BIN)/python -m pytest

unit: setup ## The unit tests only: seconds, no cluster
	$(BIN)/python -m pytest tests/unit

demo: setup ## A Serve app scales from 1 to 3 replicas; the new ones get their weights from the first
	$(BIN)/python examples/demo.py

bench: setup ## Run the benchmarks
	$(BIN)/python -m benchmarks

soak: setup ## Random failures in the simulator for MINUTES=10 minutes
	$(BIN)/python -m tests.simulation.soak --minutes $(MINUTES)

clean: ## Remove caches and build outputs, keep .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and .cache as well
	rm -rf .venv .cache
