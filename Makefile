# `make book` is the main job: environment, verification on real data, figures, book.
# `make test` runs every check. `make help` lists the rest.

SHELL = /bin/sh
PYTHON ?= python3
VENV = .venv
PY = $(VENV)/bin/python

# The fast way, where uv is installed: make env UV=uv
UV ?=
# Linux without a GPU: make env TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# make book BOOK_FLAGS=--fresh executes every notebook again, whatever the cache holds
BOOK_FLAGS ?=

RECIPES ?= 'digits/*' 'nfm-figure-toy/*' 'noisymix-figure4/*'
SEEDS ?= 1
WORKERS ?= 2

NFM = $(VENV)/bin/nfm
STAMP = $(VENV)/.installed
RERUN = experiments/results/rerun.jsonl
# Networks of its own, of one state of the code: those in the user's cache may have been trained by another.
RERUN_RUNS = experiments/results/rerun_runs
RERUN_BEGUN = experiments/results/.rerun
VERIFIED = experiments/results/.verified
SOURCES = $(wildcard nfm_theory/*.py nfm_theory/*/*.py experiments/*.py experiments/*/*.py)

# A backend set outside (often Agg) silently removes every figure from the executed pages.
unexport MPLBACKEND
# The figures and pages draw the networks that were trained here.
book experiments figures: export NFM_RUNS = $(CURDIR)/$(RERUN_RUNS)

.DEFAULT_GOAL := help
.PHONY: help env book verify experiments figures test lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## create .venv with the pinned development install (UV=uv: the fast way)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else "Python 3.10 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
ifeq ($(UV),)
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PY) -m pip install torch -c constraints.txt --index-url $(TORCH_INDEX))
	$(PY) -m pip install -e '.[dev]' -c constraints.txt
else
	test -x $(PY) || $(UV) venv --python $(PYTHON) $(VENV)
	$(if $(TORCH_INDEX),$(UV) pip install --python $(PY) torch -c constraints.txt --index-url $(TORCH_INDEX))
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(UV) pip install --python $(PY) -e '.[dev]' -c constraints.txt
endif
	@touch $(STAMP)

book: $(VERIFIED) figures ## verify on trained networks, draw the figures, build the book; ends with the page's path
	$(PY) book/build.py $(BOOK_FLAGS)

verify: ## verify the expansion on networks trained on real data, again
	rm -f $(VERIFIED) $(RERUN_BEGUN)
	$(MAKE) $(VERIFIED)

# Runs once per state of the code: deterministic, and its records are what the book's pages read.
$(VERIFIED): $(STAMP) $(SOURCES)
	@mkdir -p experiments/results
	$(PY) -m experiments.studies.verify_digits
	$(PY) -m experiments.studies.verify_bounds
	$(MAKE) experiments
	OMP_NUM_THREADS=1 $(PY) -m experiments.studies.verify_validity --check
	@touch $(VERIFIED)

# Every scheme on digits and the toy problems of both papers, run again beside the tracked ledger and compared with it.
# All five seeds: make experiments SEEDS=1,2,3,4,5
experiments: $(STAMP) $(RERUN_BEGUN) ## train every scheme on digits and the toy problems again, and compare with the ledger
	OMP_NUM_THREADS=1 $(NFM) sweep $(RECIPES) --seeds $(SEEDS) \
		--workers $(WORKERS) --threads 1 --ledger $(RERUN)
	$(NFM) ledger compare $(RERUN)

# Interrupted, it goes on where it was; after a change of the code or of its environment it begins again.
$(RERUN_BEGUN): $(STAMP) $(SOURCES)
	rm -rf $(RERUN) $(RERUN_RUNS)
	@touch $@

figures: $(STAMP) $(VERIFIED) ## draw the figures into figures/out
	if test -f figures/__main__.py; then $(PY) -m figures; fi

# xdist starts a process per core, so each gets one thread. torch.compile wants a session of its own.
test: $(STAMP) lint ## ruff, then pytest with coverage of nfm_theory of at least 95 %
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --cov=nfm_theory --cov-report=term-missing:skip-covered --cov-fail-under=95
	$(PY) -m pytest -o addopts= -m compile tests

lint: $(STAMP) ## ruff check and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## remove what was built; .venv and the tracked results stay
	rm -rf book/_build figures/out build .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* $(VERIFIED) $(RERUN) $(RERUN_RUNS) $(RERUN_BEGUN) *.egg-info
	find nfm_theory experiments figures tests book benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
