# `make demo` and `make test` work on a fresh clone: what needs Python sets .venv up first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Without bytecode every start of an engine takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
# One thread a process: two 2-thread torch processes on two cores ran ten times slower than one.
export OMP_NUM_THREADS ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export HF_HUB_OFFLINE ?= 1

BIN := .venv/bin
PACKAGES := actors broker common deploy learner tests
BENCH ?= codec
CHAOS ?=
TEST_SECONDS ?= 2400
# Most tests wait for processes that they start; the tests of one file run in order.
TEST_WORKERS ?= 2

.PHONY: help setup demo test test-fast lint fmt bench chaos-broker chaos-learner lock clean distclean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup: ## make .venv from requirements/cpu.txt; at once when it is up to date
	@deploy/venv.sh cpu

demo: setup ## watch a tiny model learn to think on this machine
	$(BIN)/headrace demo

test: setup ## all tests
	timeout --foreground $(TEST_SECONDS) $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: setup ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

lint: setup ## what CI checks besides the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m tests.contract.banned_calls
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: setup ## format, and repair what can be repaired
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: setup ## the quick benchmark, or BENCH="codec pipeline"
	for name in $(BENCH); do $(BIN)/headrace bench "$$name"; done

chaos-broker: setup ## kill a broker 1,000 times and more, print what it broke (about 40 min)
	$(BIN)/python -m tests.chaos.broker $(CHAOS)

chaos-learner: setup ## kill, halt and stop learners of 1, 2 and 4 ranks 300 times (about 20 min)
	$(BIN)/python -m tests.chaos.learner $(CHAOS)
	HEADRACE_EXHAUSTIVE=1 $(BIN)/pytest -q tests/chaos/test_learner_comes_back.py

LOCK := uv pip compile pyproject.toml --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --no-emit-find-links --no-emit-index-url \
  --no-annotate --no-header --quiet --upgrade

lock: ## pin the newest versions that pyproject.toml allows
	source deploy/uv.sh && $(LOCK) --extra cpu --group dev -o requirements/cpu.txt >/dev/null
	source deploy/uv.sh && $(LOCK) --extra broker -o requirements/broker.txt >/dev/null
	source deploy/uv.sh && $(LOCK) --extra tasks -c requirements/cpu.txt -o requirements/tasks.txt >/dev/null

clean: ## remove caches and build output
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv and the fetched uv
	rm -rf .venv .tools
