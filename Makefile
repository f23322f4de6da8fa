# `make demo` and `make test` need Python 3.11 (3.10 or later works without the lock's exact versions) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# One virtual environment, made once and again whenever the lock or the package's metadata changes.
STAMP := $(VENV)/.installed

# Two processes; a file stays in one of them, because its tests share what they train.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-slow check lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	rm -rf $(RUN)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m minimind_trl.pipeline --output_dir $(RUN)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(SHARED) tests

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(SHARED) tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The versions that this checkout was tested with, without local build tags such as torch's "+cpu".
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build *.egg-info
