# One command each: make demo, make test, make bench. The first installs into .venv, once.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Isolated from the user's PYTHON* variables and packages; tests/isolation.py does the rest.
PYTEST := $(BIN)/python -I -m pytest
OLD_VENV := .venv-flower-1.41
OLD_STAMP := $(OLD_VENV)/.installed
# Where it needs another version than constraints.txt names.
OLD_PINS := flwr==1.41.0 uv==0.12.24
SEAM_TESTS := tests/contract/test_flower_engine.py tests/contract/test_flower_strategies.py \
  tests/contract/test_flower_memory.py tests/contract/test_runner.py tests/unit/test_flower_state.py \
  tests/federation/test_results.py

.PHONY: demo test check tests tests-of-processes tests-of-parts test-long test-flower-1.41 chaos bench proto clean

demo: $(STAMP)
	@$(BIN)/fedfactory local baselines=true

test: check tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two at a time: tests of real processes mostly wait.
tests: $(STAMP)
	@$(MAKE) --no-print-directory --output-sync=target -j2 tests-of-processes tests-of-parts

tests-of-processes tests-of-parts: $(STAMP)

tests-of-processes:
	$(PYTEST) -m "federation and not slow"

tests-of-parts:
	$(PYTEST) -m "not federation and not slow"

test-long: $(STAMP)
	$(PYTEST)

chaos: $(STAMP)
	$(PYTEST) tests/federation/test_chaos.py

# The seams with Flower on the oldest version that is supported, in an environment of its own.
test-flower-1.41: $(OLD_STAMP)
	$(OLD_VENV)/bin/python -I -m pytest $(SEAM_TESTS)

bench: $(STAMP)
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.dp
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.egress
	$(BIN)/python -m bench.aggregation
	$(BIN)/python -m bench.utility
	$(BIN)/python -m bench.journal
	$(BIN)/python -m bench.engine

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fedfactory needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON): a few minutes, once (torch is the large part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(OLD_STAMP): pyproject.toml constraints.txt
	@echo "setting up $(OLD_VENV) with Flower 1.41"
	@test -x $(OLD_VENV)/bin/python || $(PYTHON) -m venv $(OLD_VENV)
	@{ grep -vE '^(flwr|uv)==' constraints.txt; printf '%s\n' $(OLD_PINS); } > $(OLD_VENV)/constraints.txt
	@$(OLD_VENV)/bin/python -m pip install --disable-pip-version-check -c $(OLD_VENV)/constraints.txt -e '.[dev]'
	@touch $@

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fedfactory/wire/rpc/gateway.proto

clean:
	rm -rf $(VENV) $(OLD_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
