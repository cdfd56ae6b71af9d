# Needs Python 3.11 or later, make, and a network for pip. Everything else is set up here.
#
#   make run     run a prompt, by pocket or by a model of yours, converted first   MODEL= PROMPT= WEIGHTS=
#   make test    run the tests
#   make check   lint and types
#   make clean   remove what was made here

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The small model that comes with lutra, or a checkpoint, which `make run` converts.
MODEL ?= pocket
NAME := $(notdir $(patsubst %/,%,$(MODEL)))
WEIGHTS ?= w8gc
PROMPT ?= $(if $(filter pocket,$(MODEL)),wake me at half past six on weekdays,Once upon a time)

.PHONY: run test check clean setup

ifeq ($(MODEL),pocket)
run: setup
	$(BIN)/lutra run pocket --prompt "$(PROMPT)"
else
run: build/$(NAME)-$(WEIGHTS).lutra
	$(BIN)/lutra run $< --prompt "$(PROMPT)" --greedy --max-tokens 100
endif

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

build/%-$(WEIGHTS).lutra: setup
	@mkdir -p build
	@test -f $@/manifest.json || $(BIN)/lutra convert $(MODEL) $@ --weights $(WEIGHTS)
