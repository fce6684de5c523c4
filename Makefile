# make demo   set up, train on the embedded digits, draw samples, evaluate: results/demo
# make demo-samplers   train that model on, draw with three samplers, compare
# make demo-qc   fine-tune that model with and without the QC regulariser, compare
# make demo-dlsm   guide that model by classifiers of the digits, compare
# make demo-all   the four, one after the other
# make experiments   the papers' small experiments in the plane: results/studies
# make samples   draw 64 pictures from the model that ships: results/pretrained
# make api   API pages from the docstrings: results/api
# make test   the quick tests
# make test-slow   the tests that take long: kills, several processes, studies (marker `slow`)
# make test-all   both
# make test-tfgan   set up TF-GAN's environment and run its tests (Python 3.10 or 3.11)
# make lint   Ruff's checks and formatting; changes nothing
# The virtual environments are made once; nothing is done about them when they stand.

PYTHON ?= python3
VENV ?= .venv
TFGAN_PYTHON ?= python3.11
TFGAN_VENV ?= .venv-tfgan
export OMP_NUM_THREADS ?= 2

DEMOS := demo demo-samplers demo-qc demo-dlsm
API := datasets distributed domains evaluation likelihood losses planning report run_lib run_lib_cas \
	run_lib_likelihood run_lib_sampling sampling sde_lib utils \
	models samplers metrics storage readers training
.PHONY: $(DEMOS) demo-all experiments samples api test test-slow test-all test-tfgan lint
.DEFAULT_GOAL := test

# Make the environment $(1) with the Python $(2) for the requirement file $(3). One that was cut off
# when it was made is emptied: pip would take half a package for a whole one. Others, of the user's
# own, stay as they are.
define environment
	if [ -e $(1)/.incomplete ]; then find $(1) -mindepth 1 ! -path $(1)/.incomplete -delete; fi
	if [ ! -e $(1) ]; then mkdir -p $(1) && touch $(1)/.incomplete; fi
	$(2) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip
	$(1)/bin/python -m pip install --quiet -r $(3)
	rm -f $(1)/.incomplete
	touch $@
endef

$(VENV)/.complete: requirements.txt requirements-dev.txt
	$(call environment,$(VENV),$(PYTHON),requirements-dev.txt)

$(TFGAN_VENV)/.complete: requirements-tfgan.txt
	$(call environment,$(TFGAN_VENV),$(TFGAN_PYTHON),requirements-tfgan.txt)

$(DEMOS) experiments samples: $(VENV)/.complete
	PYTHON=$(VENV)/bin/python bash scripts/$(subst -,_,$@).sh

demo-all:
	for name in $(DEMOS); do $(MAKE) $$name || exit 1; done

api: $(VENV)/.complete
	$(VENV)/bin/python -m pdoc --docformat google --output-directory results/api $(API)

test: $(VENV)/.complete
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.complete
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m slow

test-all: test
	$(MAKE) test-slow

test-tfgan: $(TFGAN_VENV)/.complete
	$(TFGAN_VENV)/bin/python -m pytest tests/test_tfgan.py

lint: $(VENV)/.complete
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
