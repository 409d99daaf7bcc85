# Two commands are all a fresh machine needs: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export PYTHONDONTWRITEBYTECODE =  # what is compiled is kept: tests start hundreds of processes

.PHONY: quickstart test test-long check

quickstart: $(VENV)/installed
	$(BIN)/python -m study.run search_spaces/quickstart.yaml

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not ray and not long'
	$(BIN)/python -m pytest -m 'ray and not long'

test-long: $(VENV)/installed
	$(BIN)/python -m pytest -m long

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
