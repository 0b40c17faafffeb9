# `make demo`, `make check` and `make test` need nothing but Python 3.11 or newer: they make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_FLAGS ?=
# processes that run tests, a file at a time: twice the cores of a small machine, because many tests wait for a program
WORKERS ?= 4
SOURCES := shards pipeline monitoring launch tests benchmarks

.PHONY: venv demo monitoring check test coverage lint bench clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/python -m launch.local.demo $(if $(IMAGES),--images '$(IMAGES)')

# needs Prometheus as well: apt-get install --no-install-recommends prometheus
monitoring: venv
	$(BIN)/python -m launch.local.live_monitoring $(MONITORING_FLAGS)

# before a commit, in minutes: all but the tests that start a server, need a GPU or take more than 5 seconds
check: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --only-fast $(PYTEST_FLAGS)

# everything
test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

# everything, with a floor under the share of lines that the tests' own processes run; the programs that they start are not measured.
# Measuring takes the suite past its twenty minutes on two cores, so neither `make test` nor continuous integration does it
coverage:
	$(MAKE) test PYTEST_FLAGS='--cov --cov-report=term --cov-fail-under=92 $(PYTEST_FLAGS)'

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# peers of the streaming benchmark have an environment of their own: their requirements clash with constraints.txt
bench: venv .venv-bench/installed
	$(BIN)/python benchmarks/streaming.py --ffcv-python .venv-bench-ffcv/bin/python $(BENCH_FLAGS)

.venv-bench/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"]))' > .venv-bench/bench.txt
	grep -E '^(torch|pillow)==' constraints.txt > .venv-bench/pins.txt
	.venv-bench/bin/python -m pip install --quiet --constraint .venv-bench/pins.txt --requirement .venv-bench/bench.txt
	$(PYTHON) -m venv .venv-bench-ffcv
	.venv-bench-ffcv/bin/python -m pip install --quiet ffcv==1.0.2 pillow > .venv-bench-ffcv/build.log 2>&1 || \
		{ printf 'ffcv does not build: '; grep -m1 -E 'RuntimeError|fatal error|error:' .venv-bench-ffcv/build.log || tail -1 .venv-bench-ffcv/build.log; }
	touch $@

clean:
	rm -rf .venv .venv-bench .venv-bench-ffcv .demo .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
