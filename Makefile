# Everything sets itself up: Python 3.11 or newer with pip is all that has to be there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-slow clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train a sentence encoder on this machine's Python documentation, and search it"
	@echo "make test   lint and run the tests"
	@echo "make test-slow   run the tests that take minutes, too"

demo: .venv/installed-demo
	$(BIN)/python examples/stdlib_search/demo.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

clean:
	rm -rf .venv demo

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv; the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
