# Everything sets itself up: Python 3.11 or newer with pip is all that has to be there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-fast test-slow docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train a sentence encoder on this machine's Python documentation, and search it"
	@echo "make test   lint and run the tests"
	@echo "make test-fast   run the tests that start no process, in about a minute"
	@echo "make test-slow   run the tests that take minutes, too"
	@echo "make docs   build the documentation into site/, and refuse any warning"

demo: .venv/installed-demo
	$(BIN)/python examples/stdlib_search/demo.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

test-fast: .venv/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long" --ignore tests/scripts --ignore tests/examples

test-slow: .venv/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Read site/index.html; its search needs a server: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf .venv demo site

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv; the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
