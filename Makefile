# Everything runs in .venv, which the first target that needs it sets up. `make` alone lists the targets.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: help ladder test lab bench check format

help:
	@echo "make ladder   validate every rung of the ladder; on a GPU, time them beside what PyTorch offers"
	@echo "make test     run the tests: on the GPU where there is one, on the emulator otherwise"
	@echo "make lab      open the lessons in Jupyter"
	@echo "make bench    time fusedref and its peers (needs a GPU)"
	@echo "make check    check style, formatting, types and the direction of imports"
	@echo "make format   format the sources and apply the safe fixes of the style check"
	@echo "Each of them sets up $(VENV) first, if need be."

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

$(VENV)/.ready: .ci/bootstrap.py requirements.txt requirements-cpu.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "Python 3.10 or newer is needed. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) .ci/bootstrap.py $(VENV)
