# `make demo` and `make test` need nothing but Python 3.11 or newer: they make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_FLAGS ?=
# processes that run tests, a file at a time; many tests wait for a program to start
WORKERS ?= 2
SOURCES := shards pipeline monitoring launch tests

.PHONY: venv demo test lint clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/python launch/demo.py $(if $(IMAGES),--images '$(IMAGES)')

test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term --cov-fail-under=85 $(PYTEST_FLAGS)

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

clean:
	rm -rf .venv .demo .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
