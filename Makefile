# One command each: make demo, make test, make bench. The first installs into .venv, once.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check tests tests-of-processes tests-of-parts test-long chaos bench proto clean

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
	$(BIN)/python -m pytest -m "federation and not slow"

tests-of-parts:
	$(BIN)/python -m pytest -m "not federation and not slow"

test-long: $(STAMP)
	$(BIN)/python -m pytest

chaos: $(STAMP)
	$(BIN)/python -m pytest tests/federation/test_chaos.py

bench: $(STAMP)
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.dp
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.egress
	$(BIN)/python -m bench.utility
	$(BIN)/python -m bench.journal
	$(BIN)/python -m bench.resume
	$(BIN)/python -m bench.scale

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fedfactory needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON): a few minutes, once (torch is the large part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fedfactory/wire/rpc/gateway.proto

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
