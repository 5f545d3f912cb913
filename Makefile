# Two commands do the whole job on a fresh machine: `make demo`, `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo test lint clean

# An environment with the maintained stack; made again when needs change.
$(VENV)/installed: setup.py pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[onedl,distill,demo,test]'
	touch $@

test: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) work_dirs/demo data/demo
