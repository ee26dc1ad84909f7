# `make quickstart` and `make test` set up all they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
QUICKSTART := runs/quickstart

.PHONY: quickstart test test-all lint format picture

quickstart: $(READY)
	$(BIN)/python train.py --config=configs/quickstart.py:vit --workdir=$(QUICKSTART)/vit
	$(BIN)/python train.py --config=configs/quickstart.py:soft --workdir=$(QUICKSTART)/soft
	$(BIN)/python -m softmoe.tables.results $(QUICKSTART)/vit $(QUICKSTART)/soft

# A file is one worker's, so that its runs share what they compile and train.
# One more than there are cores, for those that wait for a process of their own.
WORKERS := $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check --no-cache
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Of the page that `python -m softmoe.tables report main` wrote. Needs Chromium.
picture: $(READY)
	$(BIN)/python -m tests.browser results/main/report.html docs/report.png

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt --editable '.[train]'
	touch $@
