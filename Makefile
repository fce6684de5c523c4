# make demo   set up, train on the embedded digits, draw samples, evaluate: results/demo
# make demo-samplers   train that model on, draw with three samplers, compare
# make demo-qc   fine-tune that model with and without the QC regulariser, compare
# make demo-dlsm   guide that model by classifiers of the digits, compare
# make demo-all   the four, one after the other
# make experiments   the papers' small experiments in the plane: results/studies
# make samples   draw 64 pictures from the model that ships: results/pretrained
# make test   set up, lint, and run the quick tests
# make test-slow   kills and other tests that take long (marker `slow`)
# make test-all   both
# make test-tfgan   set up TF-GAN's environment and run its tests (Python 3.10 or 3.11)
# The virtual environments are made once; nothing is done about them when they stand.

PYTHON ?= python3
VENV ?= .venv
TFGAN_PYTHON ?= python3.11
TFGAN_VENV ?= .venv-tfgan
export OMP_NUM_THREADS ?= 2

.PHONY: samples demo demo-samplers demo-qc demo-dlsm demo-all experiments test test-slow test-all test-tfgan lint
.DEFAULT_GOAL := test

# Mark a new environment as incomplete. One that was cut off when it was made is emptied: pip would
# take half a package for a whole one. Others, of the user's own, stay as they are.
define begin
	if [ -e $(1)/.incomplete ]; then find $(1) -mindepth 1 ! -path $(1)/.incomplete -delete; fi
	if [ ! -e $(1) ]; then mkdir -p $(1) && touch $(1)/.incomplete; fi
endef

$(VENV)/.complete: requirements.txt requirements-dev.txt
	$(call begin,$(VENV))
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	rm -f $(VENV)/.incomplete
	touch $@

samples: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/samples.sh

demo: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/demo.sh

demo-samplers: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/demo_samplers.sh

demo-qc: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/demo_qc.sh

demo-dlsm: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/demo_dlsm.sh

demo-all: demo
	for name in samplers qc dlsm; do $(MAKE) demo-$$name || exit 1; done

experiments: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/experiments.sh

test: $(VENV)/.complete
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.complete
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m slow

test-all: test
	$(MAKE) test-slow

$(TFGAN_VENV)/.complete: requirements-tfgan.txt
	$(call begin,$(TFGAN_VENV))
	$(TFGAN_PYTHON) -m venv $(TFGAN_VENV)
	$(TFGAN_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TFGAN_VENV)/bin/python -m pip install --quiet -r requirements-tfgan.txt
	rm -f $(TFGAN_VENV)/.incomplete
	touch $@

test-tfgan: $(TFGAN_VENV)/.complete
	$(TFGAN_VENV)/bin/python -m pytest tests/test_tfgan.py

lint: $(VENV)/.complete
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .
