# Chipline. `make` builds .venv; `make demo` runs the whole chain; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := venv
.PHONY: all venv tensorflow lock lint format test test-apart test-stack test-all demo up down status bench clean help FORCE

PY := .venv/bin/python
STAMP := .venv/.chipline-installed
TENSORFLOW := .venv-tensorflow/.chipline-installed
# Most tests share nothing and run side by side, file by file. Those marked "stack" share one running stack and
# run one after the other, beside the others: they wait half of their time.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0 --durations 25
STACK_LOG := .chipline/logs/test-stack.log

# Another torch build than the locked one: UV_TORCH_BACKEND=cpu make (or cu126, cu130, rocm…).
# The choice is remembered in .venv; asking for another one installs again.
ifneq ($(UV_TORCH_BACKEND),)
ifneq ($(UV_TORCH_BACKEND),$(shell cat .venv/.torch-backend 2>/dev/null))
$(STAMP): FORCE
endif
endif

all: lint test  ## lint and test

venv: $(STAMP)  ## build .venv from the locks (nothing happens when it is up to date)

$(STAMP): pyproject.toml locks/requirements.lock locks/torch.lock infra/setup/bootstrap.sh
	@bash infra/setup/bootstrap.sh
	@touch $@

tensorflow: $(TENSORFLOW)  ## build .venv-tensorflow, where TensorFlow and Keras packages run

$(TENSORFLOW): locks/tensorflow.lock infra/setup/tensorflow.sh | $(STAMP)
	@bash infra/setup/tensorflow.sh
	@touch $@

lock:  ## make the locks again from pyproject.toml
	@bash infra/setup/lock.sh

lint: venv  ## style, types and the import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: venv  ## let ruff format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: venv  ## unit, integration and browser tests, without the slow ones
	@$(MAKE) --no-print-directory -j2 -k test-apart test-stack

test-apart: venv  ## … of it those that share nothing
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not stack and not slow and not gpu" tests/unit tests/integration

test-stack: venv  ## … of it those that share the running stack; what they say is shown at their end
	@mkdir -p $(dir $(STACK_LOG))
	@$(PY) -m pytest --durations 25 -m "stack and not slow and not gpu" tests/integration tests/browser \
	  > $(STACK_LOG) 2>&1; code=$$?; cat $(STACK_LOG); exit $$code

test-all: venv tensorflow  ## every test, the slow and the fault ones too
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not stack and not gpu" tests/unit
	$(PY) -m pytest -m "not stack and not gpu" tests/integration tests/fault
	$(PY) -m pytest -m "stack and not gpu" tests/integration tests/browser tests/fault

demo: venv  ## the whole chain on the real stack, which stays up for a look
	$(PY) -m infra.demo

up: venv  ## boot the stack: S3, MLflow, Prefect, workers, deployments
	$(PY) -m infra.local up

down: venv  ## stop the stack
	$(PY) -m infra.local down

status: venv  ## what runs, and where
	$(PY) -m infra.local status

bench: venv  ## run the benchmarks
	$(PY) -m benchmarks

clean:  ## remove caches (neither .venv nor the stack's data)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build
	find flows tasks infra tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12

FORCE:
