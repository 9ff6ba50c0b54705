# Two commands do all the set-up: `make app` and `make test`. `make help` lists the others.

DEFAULT_MODEL := smollm2-135m-instruct
TEST_ASSETS := $(DEFAULT_MODEL) movie-reviews editorials cities
PORT ?= 8501
APT_PACKAGES := chromium chromium-driver fonts-dejavu-core

# The first Python on the path that is new enough.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
# One worker a core, with one torch thread each; a worker that is done takes work from the others.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal \
	--cov --cov-report= --cov-fail-under=0
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

# A stamp is younger than the two files that say what is installed, so a second start installs nothing.
APP_READY := .venv/.ready-app
DEV_READY := .venv/.ready-dev
BENCH_READY := .venv/.ready-bench

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Waiting threads sleep: on a busy machine torch's spinning ones make small operations ten times slower.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.NOTPARALLEL: # the gate's order is part of the gate
.PHONY: help app test lint types core contracts rest browser docs assets chromium format \
	lengths bench shots constraints clean

help: ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

app: $(APP_READY) ## install, pull the default model, serve the app on 127.0.0.1:8501 (PORT=)
	@$(BIN)/workbench pull $(DEFAULT_MODEL) || echo "$(DEFAULT_MODEL) could not be pulled: \
	the app starts on the built-in hand-made model. Run 'make app' again to try once more."
	$(BIN)/workbench app --port $(PORT)

test: $(DEV_READY) chromium assets lint types core contracts rest browser ## the gate
	@echo "The gate has passed."

lint: $(DEV_READY) ## format, lint, imports, spelling, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/deptry .

types: $(DEV_READY) ## pyright
	$(BIN)/pyright --project pyproject.toml

# Coverage is gathered over core and the rest, and judged after them; it would double the time of contracts.
core: $(DEV_READY) ## the tests of the core
	$(TEST) tests/core

contracts: $(DEV_READY) ## what every extension keeps to
	$(TEST) --no-cov tests/contracts

rest: $(DEV_READY) ## all other tests, doctests and the documents' snippets, then coverage
	$(TEST) --cov-append --ignore tests/core --ignore tests/contracts --ignore tests/browser
	$(BIN)/coverage report

browser: $(DEV_READY) ## the app in headless Chromium
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/browser

docs: $(DEV_READY) ## run every snippet of the documents, alone
	$(BIN)/python -m pytest tests/test_docs.py

format: $(DEV_READY) ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

assets: $(DEV_READY) ## pull the model and the data that the tests need
	@for asset in $(TEST_ASSETS); do TQDM_DISABLE=1 $(BIN)/workbench pull $$asset || exit; done

chromium:
	@command -v chromium >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends $(APT_PACKAGES); \
	else echo "NO CHROMIUM: browser tests will not run. Install: $(APT_PACKAGES)."; fi

lengths: $(DEV_READY) ## what is longer than we aim for; a question, not a failure
	$(BIN)/python -m tests.lengths

bench: $(BENCH_READY) ## time the workbench beside its peers (GROUPS="forward sweeps" for some)
	TQDM_DISABLE=1 $(BIN)/python -m benchmarks $(GROUPS)

shots: $(DEV_READY) chromium ## screenshots of every page, light and dark, in build/screenshots
	$(BIN)/python -m app.tools.screenshots build/screenshots

constraints: ## pin what is installed now; run it where the gate has passed
	@sed -n '/^#/p' constraints.txt > constraints.tmp
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.tmp
	@mv constraints.tmp constraints.txt

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage

$(APP_READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 found. Try: make PYTHON=/path/to/python3.11"; \
	exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

$(DEV_READY): $(APP_READY)
	$(INSTALL) ".[dev]"
	@touch $@

$(BENCH_READY): $(APP_READY)
	$(INSTALL) ".[bench]"
	@touch $@
