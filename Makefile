# make demo   set up, train on the embedded digits and draw samples (results/demo)
# make test   set up and run the tests
# The virtual environment is made once; both do nothing about it when it stands.

PYTHON ?= python3
VENV ?= .venv
export OMP_NUM_THREADS ?= 2

.PHONY: demo test lint
.DEFAULT_GOAL := test

$(VENV)/.complete: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash demo/run.sh

test: $(VENV)/.complete
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m pytest -n 2

lint: $(VENV)/.complete
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .
