# Everything a person or a pipeline runs. Each target installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help
.PHONY: help install lab demo test lint organism bench fuzz peers browser clean

help:  ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/'

install: $(STAMP)  ## make .venv in the checkout with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@touch $(STAMP)

lab: install  ## open JupyterLab on the first notebook
	$(BIN)/workbench lab

demo: install  ## run the whole loop headless and write a bundle
	$(BIN)/workbench demo --out demo

browser: install  ## find a Chrome or Chromium, or install one
	$(BIN)/python tests/browser/find_browser.py --install

test: install browser  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --jaxtyping-packages=workbench,beartype.beartype $(ARGS)

lint: install  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

organism: install  ## rebuild the built-in subject and its dictionaries from a seed
	$(BIN)/python -m workbench.models.organism build

bench: install  ## measure the budgets
	$(BIN)/workbench bench startup

clean:  ## remove the environment
	rm -rf $(VENV)
