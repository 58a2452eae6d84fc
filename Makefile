# make demo   train and compare standard, looped and grown models; ends in demo/report.html
# make test   format, lint, and the test suite (make test-slow: the longer tests; make test-hf: those
#             that compare with Hugging Face's models, for which it installs PyTorch)
# Both make the environment they need in .venv; PYTHON=python3.13 chooses another Python.

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-slow test-hf clean

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

test-hf: $(VENV)/installed-hf
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" tests/test_interop.py tests/test_harness.py

clean:
	rm -rf $(VENV) demo build *.egg-info
