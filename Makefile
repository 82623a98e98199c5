PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test bench lint clean

help:
	@echo "make demo   train on real images with synchronized BatchNorm; results in runs/demo/"
	@echo "make test   run the whole test suite"
	@echo "make bench  measure time, memory and collectives beside the peers; runs/benchmarks/"
	@echo "make lint   run the linter, the formatter's check and the type checker"
	@echo "make clean  remove the virtual environment, caches and results"

demo: .venv/.demo
	$(BIN)/python -m examples.demo $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

bench: .venv/.test
	$(BIN)/python -m benchmarks $(ARGS)

lint: .venv/.test .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis runs

# Each stamp stands for one set of packages; a changed pyproject.toml renews them.
.venv/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"jaxnorm needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/.demo: .venv/.base
	$(PIP) install --quiet --editable . --group examples
	touch $@

.venv/.test: .venv/.base
	$(PIP) install --quiet --editable ".[flax]" \
		--group test --group examples --group benchmarks
	touch $@

.venv/.lint: .venv/.base
	$(PIP) install --quiet --group lint
	touch $@
