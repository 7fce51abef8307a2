# Everything runs in its own virtual environment, made on first use and reused while
# pyproject.toml and constraints.txt stay the same.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
AREA ?=
PART ?= all
NIGHTLY ?=
BUILD ?= +cpu
export PYTHONUNBUFFERED = 1

.PHONY: help demo test check format bench gpu nightly figures clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (once; torch is large)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "expected Python 3.11 to 3.13, got %d.%d; call make PYTHON=python3.11" % v)'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	$(RUN) -m pip install -q --progress-bar on "torch==$$torch$(BUILD)" 2>/dev/null \
	  || $(RUN) -m pip install --progress-bar on "torch==$$torch"
	@$(RUN) -m pip install -q --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## train a minute from scratch, then serve and query the bundled model
	@$(RUN) -m recipes.demo

test: $(VENV)/.ready  ## the test suite
	@$(RUN) -m pytest -n 2 --dist worksteal

check: $(VENV)/.ready  ## lint, format, types, import contracts
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/pyright --pythonpath $(RUN)
	@$(VENV)/bin/lint-imports

format: $(VENV)/.ready  ## rewrite the sources as `check` wants them
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

bench: $(VENV)/.ready  ## time the kernels and blocks (pytest-benchmark)
	@$(RUN) -m pytest benches --benchmark-enable

# `make gpu RUN=python3` takes that interpreter as it is and makes no environment.
gpu:  ## tests, kernel benches and matrix on an accelerator: make gpu PART=tests|benches|matrix
ifeq ($(origin RUN),command line)
	@$(RUN) -m benches.gpu --part $(PART)
else
	@command -v nvidia-smi >/dev/null || test -e /dev/kfd || { \
	  echo "no accelerator found (no nvidia-smi, no /dev/kfd); nothing was run" >&2; exit 2; }
	@$(MAKE) --no-print-directory VENV=.venv-gpu BUILD= .venv-gpu/.ready
	@.venv-gpu/bin/python -m benches.gpu --part $(PART)
endif

nightly: $(VENV)/.ready  ## long volume: simulation, state machines, Ray, slow figures
	@$(RUN) -m pip install -q --progress-bar on -c constraints.txt -e '.[cluster]'
	@HYPOTHESIS_PROFILE=nightly $(RUN) -m pytest -n 2 -m "nightly or not nightly" --timeout 7200
	@$(RUN) -m benches.figures --nightly

figures: $(VENV)/.ready  ## re-measure the claimed figures: make figures AREA=sched
	@$(RUN) -m benches.figures $(if $(AREA),--area $(AREA)) $(if $(ONLY),--only "$(ONLY)") $(if $(NIGHTLY),--nightly) --write

clean:  ## remove the virtual environment and caches
	@rm -rf $(VENV) .venv-gpu .pytest_cache .ruff_cache .hypothesis .benchmarks out
