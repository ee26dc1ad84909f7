# `make quickstart` and `make test` set up all they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
QUICKSTART := runs/quickstart

.PHONY: quickstart test test-all lint format

quickstart: $(READY)
	$(BIN)/python train.py --config=configs/quickstart.py:vit --workdir=$(QUICKSTART)/vit
	$(BIN)/python train.py --config=configs/quickstart.py:soft --workdir=$(QUICKSTART)/soft
	$(BIN)/python -m softmoe.tables.results $(QUICKSTART)/vit $(QUICKSTART)/soft

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt --editable .
	touch $@
