# Every target runs in .venv, and the first one to run creates it. `make` alone lists the targets.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: help ladder test lab bench check format

help:
	@echo "make ladder   validate every rung of the ladder; on a GPU, time it against PyTorch"
	@echo "make test     run the tests: on a GPU if there is one, else on the emulator"
	@echo "make check    check style, formatting, types and the direction of imports"
	@echo "make format   format the sources and apply ruff's safe fixes"
	@echo "make lab      open the lessons in Jupyter"
	@echo "make bench    time fusedref against PyTorch (needs a GPU)"
	@echo "The first of them to run creates $(VENV), which takes some minutes."

ladder: $(VENV)/.ready
	$(RUN) -m kernels

test: $(VENV)/.ready
	$(RUN) -m pytest -n auto --maxprocesses 8

lab: $(VENV)/.ready
	$(RUN) -m jupyter lab lessons

bench: $(VENV)/.ready
	$(RUN) -m fusedref bench

check: $(VENV)/.ready
	$(RUN) tools/check.py

format: $(VENV)/.ready
	$(RUN) tools/check.py --fix

$(VENV)/.ready: tools/setup_environment.py requirements.txt requirements-cpu.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "Python 3.10 or newer is needed. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) tools/setup_environment.py $(VENV)
