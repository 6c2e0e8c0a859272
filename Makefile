# make setup    .venv with everything that the rest needs; nothing to do when it is up to date
# make demo     pack photographs, train under a memory cap, plot memory against it   [DATA=folder]
# make test     all tests, in three processes                                        [ARGS="-k loader"]
# make check    format, lint, types, import direction, stub drift, sanitizers
# make bench    quick measurements against the peers
# make format   put Python and C++ into the form that `make check` asks for

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-bench demo test check bench format clean
MAKEFLAGS += --no-print-directory
# Tests start hundreds of processes; where byte code isn't kept, each of them compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=

PY := .venv/bin/python
CORE := CMakeLists.txt $(shell find core -name '*.cpp' -o -name '*.h')
# The editable install knows the packages that were there when it was made.
PACKAGES := $(shell find src -name __init__.py)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: .venv/.core

.venv/.packages: pyproject.toml scripts/setup
	@scripts/setup packages
	@touch $@

.venv/.core: .venv/.packages $(CORE) $(PACKAGES)
	@scripts/setup core
	@touch $@

setup-bench: .venv/.bench

.venv/.bench: .venv/.core
	@scripts/setup bench
	@touch $@

demo: setup
	@$(PY) examples/demo $(if $(DATA),--data "$(DATA)")

# Three processes even on two cores, for many tests wait. Those of one file run in one of them; files are taken in their
# order, so that short ones come last and all three end together. A test that hangs or dies ends the run, with stacks.
TEST_FLAGS := -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: setup
	@$(PY) -m pytest -q $(TEST_FLAGS) --durations=10 $(ARGS)

check: setup
	@scripts/check

bench: setup-bench
	@scripts/bench

format: setup
	@.venv/bin/ruff format -q && .venv/bin/ruff check -q --fix
	@.venv/bin/clang-format -i $(filter %.cpp %.h,$(CORE))

clean:
	rm -rf .venv build out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
