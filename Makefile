# make demo   train and compare standard, looped and grown models; ends in demo/report.html
# make test   format, lint, and the test suite (make test-slow: the longer tests; make test-hf: those
#             that compare with Hugging Face's models, for which it installs PyTorch;
#             make test-base: every command without any extra installed; make test-faults: every
#             fault of which test-slow tries a sample: kills, damage, full disks, odd command lines)
# Each makes the environment it needs (.venv; .venv-base for test-base); PYTHON=python3.13 chooses
# another Python.

PYTHON ?= python3
VENV ?= .venv
VENV_BASE ?= .venv-base

.PHONY: demo test test-slow test-hf test-base test-faults clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(VENV)/bin/python experiments/demo.py

test: $(VENV)/installed
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow

$(VENV)/installed-hf: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,dev-hf]'
	touch $@

test-faults: $(VENV)/installed
	FAULTS=all $(VENV)/bin/python -m pytest tests/faults

test-hf: $(VENV)/installed-hf
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" tests/test_interop.py tests/test_harness.py

test-base:
	$(PYTHON) -m venv --clear $(VENV_BASE)
	$(VENV_BASE)/bin/python -m pip install --quiet --disable-pip-version-check .
	$(VENV_BASE)/bin/python tests/base/check.py

clean:
	rm -rf $(VENV) $(VENV_BASE) demo build *.egg-info
