# `make demo` and `make test` need Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# One virtual environment, made once and again whenever the lock or the package's metadata changes.
STAMP := $(VENV)/.installed
# The site's tools, which only `make docs` installs.
DOCS_STAMP := $(VENV)/.docs-installed

# Two workers; a file stays in one of them, because its tests share what they train.
PYTEST := $(BIN)/python -m pytest --durations 15
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# What `make test-changed` compares with.
BASE ?= HEAD

.PHONY: install demo demo-tools test test-slow test-all test-changed check docs lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	rm -rf $(RUN)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/minimind-trl demo --output_dir $(RUN)

# A 1M model learns to use tools: its data, its tokenizer, pretraining, SFT, and GRPO with and without tools.
demo-tools: $(STAMP)
	rm -rf runs/tiny-tools
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/tools.py --output_dir runs/tiny-tools

test: $(STAMP)
	$(PYTEST) -m "not slow and not exhaustive" $(WORKERS) tests

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not exhaustive" $(WORKERS) tests

# All of the above, and the full products that the slow tests cover with fewer combinations.
test-all: $(STAMP)
	$(PYTEST) $(WORKERS) tests

# Only the quick tests of what a change touches: `make test-changed`, or `make test-changed BASE=main`.
test-changed: $(STAMP)
	@touched="$$($(BIN)/python -m tests.changed $(BASE))"; \
	if [ -z "$$touched" ]; then echo "no test is touched"; else \
	$(PYTEST) -m "not slow and not exhaustive" $$touched; fi

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, in site/; a broken link or reference fails.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): docs/requirements.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r docs/requirements.lock
	touch $@

# The versions that this checkout was tested with, without local build tags such as torch's "+cpu". The site's tools come
# last, and their lock holds what they add.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	touch $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' | \
		grep -vxFf requirements.lock > docs/requirements.lock
	touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) runs build site *.egg-info
