# Everything that people, pre-commit and CI run. Needs Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLAIN := $(VENV)/.plain
READY := $(VENV)/.ready
# The plain wheel of torch brings CUDA; name another source or build here if you want it, e.g. TORCH="torch==2.13.0+cpu".
TORCH ?= torch==2.13.0

.PHONY: demo test lint types bench docs format build clean

demo: $(PLAIN)
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
$(PLAIN): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deepfailguard needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH), deepfailguard and what it needs in $(VENV), once; this takes minutes."
	@echo "On disk it is 1.5 GB with a torch for CPUs, several GB more with CUDA; see TORCH in the Makefile."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(READY): $(PLAIN)
	@echo "Installing what developers need (pytest, mypy, ruff, ray and others) in $(VENV), once: 0.4 GB on disk."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
