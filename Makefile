PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check tests test-long bench proto clean

demo: $(STAMP)
	$(BIN)/fedfactory local baselines=true

test: check tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-long: $(STAMP)
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python -m bench.run

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a minute or two, once)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedfactory needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. fedfactory/wire/rpc/gateway.proto

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
