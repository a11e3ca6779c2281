# make setup | demo | test | test-cluster | test-nightly | gpu | check | bench
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TWO := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 10

.PHONY: setup demo test test-cluster test-nightly gpu check bench clean

setup: .venv/installed

# Sources of what pip compiles: after a change of one `make` installs, and so compiles, again.
NATIVE := setup.py segpipe/kernels/build.py $(wildcard segpipe/kernels/*.cpp segpipe/kernels/*.h)

.venv/installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "segpipe needs Python 3.11: make PYTHON=/path/to/python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'from segpipe import kernels; print("native library:", kernels.missing() or "built")'
	touch $@

demo: setup
	$(BIN)/segpipe demo --output runs/demo

test: setup
	$(TWO) -m 'not cluster and not nightly and not gpu'

test-cluster: setup
	$(TWO) -m 'cluster and not nightly'

test-nightly: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[tables]'
	$(TWO) -m nightly

gpu: setup
	$(BIN)/pytest -m gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/cropping.py
	$(BIN)/python benchmarks/segmentation.py
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf .venv runs build segpipe/kernels/lib
