# Needs Python >= 3.11 and make. Every target creates what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test check format wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    adapt to new domains, beside Optuna; the report lies in runs/demo"
	@echo "make test    run all tests"
	@echo "make check   lint, format and types"
	@echo "make format  let ruff put right what it can"
	@echo "make wheel   build sdist and wheel into dist/"
	@echo "make clean   remove .venv and everything built"

# The stamps are files inside .venv: a change of pyproject.toml installs again.
.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d found, 3.11 or newer is needed; call make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml | .venv/created
	$(PIP) install -e .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/created
	$(PIP) install -e '.[dev]'
	@touch $@ .venv/installed

demo: .venv/installed
	$(BIN)/lepton demo --out runs/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

wheel: .venv/installed-dev
	rm -rf build dist
	$(BIN)/python -m build -q

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
