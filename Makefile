# make demo   train and compare standard, looped and grown models; ends in demo/report.html
# make test   format, lint, and the test suite (make test-slow: the longer tests; make test-hf: those
#             that compare with Hugging Face's models, for which it installs PyTorch;
#             make test-aot: the programs of the compilers for TPUs, and for GPUs where JAX's CUDA
#             plug-in is installed; no device is needed;
#             make test-base: every command without any extra installed; make test-faults: every
#             fault of which test-slow tries a sample: kills, damage, full disks, odd command lines)
# Each makes the environment it needs (.venv; .venv-base and .venv-aot for test-base and test-aot);
# PYTHON=python3.13 chooses another Python.

PYTHON ?= python3
VENV ?= .venv
VENV_BASE ?= .venv-base
VENV_AOT ?= .venv-aot

.PHONY: demo test test-slow test-hf test-aot test-base test-faults clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(VENV)/bin/python experiments/demo.py

test: $(VENV)/installed
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/python -m pytest -n 2 -m "not slow and not aot"

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 -m "slow and not aot"

$(VENV)/installed-hf: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,dev-hf]'
	touch $@

test-faults: $(VENV)/installed
	FAULTS=all $(VENV)/bin/python -m pytest tests/faults

test-hf: $(VENV)/installed-hf
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" tests/test_interop.py tests/test_harness.py

$(VENV_AOT)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_AOT)
	$(VENV_AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,aot]'
	touch $@

test-aot: $(VENV_AOT)/installed
	$(VENV_AOT)/bin/python -m pytest -rs -m aot tests/aot

test-base:
	$(PYTHON) -m venv --clear $(VENV_BASE)
	$(VENV_BASE)/bin/python -m pip install --quiet --disable-pip-version-check .
	$(VENV_BASE)/bin/python tests/base/check.py

clean:
	rm -rf $(VENV) $(VENV_BASE) $(VENV_AOT) demo build *.egg-info
