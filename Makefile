# `make book` is the main job: environment, a sample of the results again, the book with its figures. `make test` runs the quick checks.
# `make help` lists the rest. Only `make record` changes tracked files; everything else writes files that git ignores.

SHELL = /bin/sh
# Another interpreter, 3.10 or newer: make env PYTHON=python3.12
PYTHON ?= python3
VENV = .venv
PY = $(VENV)/bin/python
# The fast way, where uv is installed: make env UV=uv
UV ?=
# Linux without a GPU: make env TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# make book BOOK_FLAGS=--fresh executes every notebook again, whatever the cache holds.
BOOK_FLAGS ?=
# make test SLOW=1 runs every test, also the larger cases of those that have quick ones, and measures their coverage.
SLOW ?=

# What is trained again: by `make book` a sample, by `make verify` everything that needs no data of yours.
SAMPLE ?= digits/nfm 'nfm-figure-toy/*' 'noisymix-figure4/*'
# And a network of the compact size, where the processor has bfloat16; elsewhere it takes a quarter of an hour.
COMPACT ?= fashion-compact/nfm
RECIPES ?= 'digits*/*' 'nfm-figure-toy/*' 'noisymix-figure4/*'
SEEDS ?= 1
WORKERS ?= 2

STUDIES = expansion bounds validity decomposition where
SAMPLED = expansion bounds

RESULTS = experiments/results
# What is measured again, with networks of its own: those in the user's cache may be of another state of the code.
AGAIN = $(RESULTS)/again
LEDGER = $(AGAIN)/experiments.jsonl
RUNS = $(AGAIN)/runs
STAMP = $(VENV)/.installed
TYPES = $(PY) -m basedpyright --pythonpath $(PY) && $(PY) -m pytest -q tests/packaging/check_types.py
LINT = $(PY) -m ruff check . && $(PY) -m ruff format --check . && $(TYPES)
# Coverage makes tests slower by half.
ALL = -m "not compile and not integrations" --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

# What each result depends on ------------------------------------------------------------------------------------------

# No study uses the report, the derivations in SymPy and other people's loops.
LIBRARY := $(shell find nfm_theory -name '*.py' $(foreach part,cli integrations reporting symbolic,-not -path 'nfm_theory/$(part)/*'))
LIBRARY += $(addprefix nfm_theory/cli/,__init__.py errors.py files.py)
# Studies of small networks on the digits.
SMALL := $(wildcard $(addprefix experiments/,__init__.py console.py processes.py augment/__init__.py augment/standard.py \
	record/__init__.py record/files.py data/*.py models/*.py))
# Training by a recipe, and what a trained network is measured with.
TRAINING := $(SMALL) $(wildcard $(addprefix experiments/,precision.py runner.py studies/__init__.py studies/networks.py \
	$(addsuffix /*.py,augment corruptions evaluation metrics recipes record schemes training)))
# What is drawn, and from what.
FIGURES := $(wildcard figures/*.py nfm_theory/symbolic/*.py $(addprefix experiments/,claims/*.py studies/*.py tables/*.py)) \
	$(wildcard $(RESULTS)/*.jsonl experiments/published/*.csv benchmarks/results/*.json)

STUDY = $(LIBRARY) $(addprefix experiments/studies/,__init__.py networks.py recorded.py)
EXPANSION = $(STUDY) $(SMALL) experiments/studies/expansion.py
BOUNDS = $(STUDY) $(SMALL) experiments/studies/bounds.py
VALIDITY = $(STUDY) $(TRAINING) $(addprefix experiments/studies/,validity.py validity_networks.py)
DECOMPOSITION = $(STUDY) $(TRAINING) experiments/studies/decomposition.py
WHERE = $(STUDY) $(TRAINING) experiments/studies/where.py

# A backend set outside (often Agg) silently removes every figure from the executed pages.
unexport MPLBACKEND
# pip leaves the compiling of modules to Python. Without keeping it, every process would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS = 1
book sample verify training record figures: export NFM_RUNS = $(CURDIR)/$(RUNS)

.DEFAULT_GOAL := help
.PHONY: help env book pdf sample verify training record figures test lint types clean
.DELETE_ON_ERROR:
# Also under `make -j`: each of the jobs uses all cores.
.NOTPARALLEL:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## make .venv, the pinned development install (UV=uv: the fast way)

$(STAMP): pyproject.toml constraints.txt scripts/environment.sh
	@PYTHON='$(PYTHON)' VENV='$(VENV)' UV='$(UV)' TORCH_INDEX='$(TORCH_INDEX)' scripts/environment.sh
	@touch $@

book: sample ## verify a sample, build the book; ends with the page to open
	$(PY) book/build.py $(BOOK_FLAGS)

pdf: $(STAMP) ## print the book that was built as a PDF; needs Chromium or Chrome
	$(PY) book/pdf.py

# A sample of the results, again -----------------------------------------------------------------------------------------

sample: $(SAMPLED:%=$(AGAIN)/.sample-%) $(AGAIN)/.sample-training ## verify and train a sample again, compare with the records

$(AGAIN)/.sample-expansion $(AGAIN)/.study-expansion: $(STAMP) $(EXPANSION) $(RESULTS)/expansion.jsonl
$(AGAIN)/.sample-bounds $(AGAIN)/.study-bounds: $(STAMP) $(BOUNDS) $(RESULTS)/bounds.jsonl
$(AGAIN)/.study-validity: $(STAMP) $(VALIDITY) $(RESULTS)/validity_trained.jsonl
$(AGAIN)/.study-decomposition: $(STAMP) $(DECOMPOSITION) $(RESULTS)/decomposition.jsonl
$(AGAIN)/.study-where: $(STAMP) $(WHERE) $(RESULTS)/where.jsonl
# The networks of validity are trained by recipes, into $(RUNS).
$(AGAIN)/.study-validity: | $(AGAIN)/.begun

$(AGAIN)/.sample-%:
	@mkdir -p $(AGAIN)
	$(PY) -m experiments study $* --sample --workers $(WORKERS)
	@touch $@

$(AGAIN)/.sample-training: $(AGAIN)/.begun
	compact=$$($(PY) -m experiments.precision && echo '$(COMPACT)'); \
	$(PY) -m experiments sweep $(SAMPLE) $$compact --seeds 1 --workers $(WORKERS) --threads 1 --ledger $(LEDGER)
	$(PY) -m experiments ledger compare $(LEDGER)
	@touch $@

# Interrupted, a sweep goes on where it was. After a change of the code or of the environment it begins again.
$(AGAIN)/.begun: $(STAMP) $(LIBRARY) $(TRAINING)
	rm -rf $(LEDGER) $(RUNS)
	@mkdir -p $(AGAIN)
	@touch $@

# Everything, again ------------------------------------------------------------------------------------------------------

verify: $(STUDIES:%=$(AGAIN)/.study-%) training ## do every study and training again, beside the records, and compare

$(AGAIN)/.study-%:
	@mkdir -p $(AGAIN)
	$(PY) -m experiments study $* --workers $(WORKERS)
	@touch $@

# All five seeds: make training SEEDS=1,2,3,4,5
training: $(AGAIN)/.begun ## train every recipe on digits and the toy problems again, and compare
	$(PY) -m experiments sweep $(RECIPES) --seeds $(SEEDS) --workers $(WORKERS) --threads 1 --ledger $(LEDGER)
	$(PY) -m experiments ledger compare $(LEDGER)

record: $(AGAIN)/.begun ## do everything again and write it into the tracked records
	for study in $(STUDIES) explore; do $(PY) -m experiments study $$study --record --workers $(WORKERS) || exit; done
	$(PY) -m experiments sweep $(RECIPES) --workers $(WORKERS) --threads 1 --ledger $(RESULTS)/experiments.jsonl

# Figures, checks --------------------------------------------------------------------------------------------------------

figures: figures/out/.drawn ## draw the figures of the book into files, in figures/out

# The toy problems' networks are those of the sample.
figures/out/.drawn: $(STAMP) $(LIBRARY) $(TRAINING) $(FIGURES) $(AGAIN)/.sample-training
	$(PY) -m figures
	@touch $@

# First, side by side, two jobs of one core: the lint, and torch.compile, which wants a session of its own. Then xdist
# starts a process for each core.
test: $(STAMP) ## ruff, types, quick tests; SLOW=1: all tests, and coverage of nfm_theory of at least 95 %
	$(PY) -m pytest -q -o addopts= -m compile $$(grep -rl --include='*.py' 'mark\.compile' tests/theory tests/experiments) & \
		compiled=$$!; $(LINT); linted=$$?; wait $$compiled && exit $$linted
	$(PY) -m pytest -n auto --dist worksteal $(if $(SLOW),$(ALL))

lint: $(STAMP) ## ruff check and format, and the types
	$(LINT)

types: $(STAMP) ## basedpyright: the library, and a user's script against the wheel
	$(TYPES)

clean: ## remove what was built; .venv and the tracked records stay
	rm -rf book/_build figures/out build dist .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* $(AGAIN) *.egg-info
	find nfm_theory experiments figures tests book benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
