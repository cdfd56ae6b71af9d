# Needs Python 3.11 or later, make, and a network for pip. Everything else is set up here.
#
#   make run     convert a model and continue a prompt   MODEL= PROMPT= WEIGHTS=
#   make test    run the tests
#   make check   lint and types
#   make clean   remove what was made here

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_DATA := $(or $(LUTRA_TEST_DATA),../shared/models)

# The model that `make run` converts: a trained one where it is, else one with random weights.
MODEL ?= $(if $(wildcard $(TEST_DATA)/stories260k/config.json),$(TEST_DATA)/stories260k,build/tiny)
NAME := $(notdir $(patsubst %/,%,$(MODEL)))
WEIGHTS ?= w8gc
PROMPT ?= Once upon a time

.PHONY: run test check clean setup

run: build/$(NAME)-$(WEIGHTS).lutra
	$(BIN)/lutra run $< --prompt "$(PROMPT)" --greedy --max-tokens 100

test: setup
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml edge/version.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "lutra needs Python 3.11 or later, this is %d.%d; say make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[convert,ahead,npu,serve,dev]"
	@touch $@

build/%-$(WEIGHTS).lutra: setup | $(if $(filter build/tiny,$(MODEL)),build/tiny)
	@mkdir -p build
	@test -f $@/manifest.json || $(BIN)/lutra convert $(MODEL) $@ --weights $(WEIGHTS)

build/tiny: setup
	@test -f $@/config.json || $(BIN)/lutra synth tiny $@
