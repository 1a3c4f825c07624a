# Each target does all of the set-up that it needs; both are quick when repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-slow test-oldest docs clean

# A real meta-training on real drawings, about 5 minutes on 2 CPU cores.
train: .venv/installed
	$(BIN)/python train.py experiment=quickstart

# Lint, types and tests.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=logical --dist=worksteal

# What takes minutes: every algorithm in every test, and the studies of benchmarks/ in small.
test-slow: .venv/installed
	$(BIN)/pytest --numprocesses=logical --dist=worksteal -m slow

# The tests, on the oldest versions that pyproject.toml allows: several GB, once.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python \
		--resolution lowest-direct --editable '.[wandb,tensorboard,notebooks,sweeps,dev]'
	.venv-oldest/bin/pytest --numprocesses=logical --dist=worksteal

# The documentation site, in site/; a broken link fails.
docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "metadraw needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[wandb,dashboard,tensorboard,notebooks,sweeps,dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest site .mypy_cache .pytest_cache .ruff_cache
