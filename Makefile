# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUDGET ?= full
ROOT ?= runs
SPACE_full := search_spaces/demo.py
SPACE_tiny := search_spaces/demo_tiny.py

export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-cluster lint bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	@test -n "$(SPACE_$(BUDGET))" || { echo "BUDGET must be full or tiny, got '$(BUDGET)'" >&2; exit 2; }
	$(BIN)/atdiff shards demo --out data/mnist5k --resolutions 8,12,16
	$(BIN)/atdiff sweep $(SPACE_$(BUDGET)) --root $(ROOT)

# Tests without a cluster share the cores among processes of one thread; those that start a real Ray run alone.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not cluster and not namespaces" --numprocesses 2
	$(BIN)/python -m pytest -m "cluster and not namespaces"

# Several hosts on this machine, as network namespaces: needs root and iproute2.
test-cluster: setup
	$(BIN)/python -m pytest -m namespaces

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.schemes
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
