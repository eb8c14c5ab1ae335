# Everything that people, pre-commit and CI run. Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The plain wheel of torch brings CUDA; name another source or build here if you want it, e.g. TORCH="torch==2.13.0+cpu".
TORCH ?= torch==2.13.0

.PHONY: demo test lint types bench docs format build clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(READY)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark --quick || exit 1; done

docs: $(READY)
	$(BIN)/python -m pytest -n 0 tests/test_docs.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(READY)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info outputs

# torch comes first and alone: with it installed, no other package pulls another build of it.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deepfailguard needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
