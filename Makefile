PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell sed -n 's/^torch==//p' templates/locks/scoring.in)

.PHONY: demo test lint lock docs golden bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	@echo "Installing torch $(TORCH), then the project (a few minutes, once)"
	$(BIN)/pip install -q "torch==$(TORCH)"
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

