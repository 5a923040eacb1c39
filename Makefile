# `make demo` and `make test` do everything, from a fresh clone on; the environment lives in .venv.
# `make docs` builds the site of the pages in docs, `make notebooks` stores new outputs in the notebooks,
# and `make pictures` draws those of the page on the loop, from the demo in runs/demo.
# The first that runs and is new enough: a version manager's stand-in may be found and refuse to run.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do $$python $(NEW_ENOUGH) && { echo $$python; break; }; done)
BIN := .venv/bin
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
PIP := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
EDITABLE := --no-build-isolation --editable

# The lowest versions have wheels for Python 3.11 alone. TORCH=VERSION takes another torch
# than the lowest one, whose CUDA build of 7 GB is the only one on most indexes.
FOR_LOWEST := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
LOWEST_PYTHON ?= $(shell for python in python3 python3.11; do $$python $(FOR_LOWEST) && { echo $$python; break; }; done)
TORCH ?= $(shell sed -n 's/^torch==//p' constraints-lowest.txt)
LOWEST := .venv-lowest
LOWEST_PIP := $(LOWEST)/bin/python $(PIP_INSTALL) --constraint $(LOWEST)/constraints.txt
LOWEST_TESTS := $(addprefix tests/, test_run.py test_examples.py agents/test_branching_agent.py \
	agents/test_sb3.py agents/test_tuned.py checkpoints/test_interop.py checkpoints/test_schema.py \
	checkpoints/test_store.py cli/test_cli_paths.py cli/test_cli_run.py data/test_hub_copies.py \
	data/test_tokenizers.py envs/test_training.py models/test_models.py planners/test_planner_bayes.py \
	records/test_parquet.py report/test_tree.py rollouts/test_folded.py rollouts/test_workers.py \
	tools/test_portable.py training/test_optimizers.py training/test_own_parts.py \
	worldmodel/test_model_files.py worldmodel/test_model_forecast.py)

.PHONY: demo test test-lowest check format docs notebooks pictures clean

demo: .venv/installed
	$(BIN)/trainenv demo
	@echo 'to have trainenv on the path: source .venv/bin/activate'

test: check
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-lowest: $(LOWEST)/installed-$(TORCH)
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile $(LOWEST_TESTS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo 'the first page: build/site/index.html'

notebooks: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/_site/notebooks.py

pictures: .venv/installed
	$(BIN)/python docs/_site/pictures.py runs/demo

.venv/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) $(NEW_ENOUGH) || \
		{ echo "trainenv needs Python 3.11 or newer, found none that runs; try: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) hatchling editables

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing torch and the other packages into .venv: 1.7 GB, about 2 minutes'
	$(PIP) $(EDITABLE) .
	@touch $@

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing all packages of the site into .venv: 1.8 GB, about 2 minutes'
	$(PIP) $(EDITABLE) '.[docs]'
	@touch $@ .venv/installed

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing all packages of the tests into .venv: 2.3 GB, about 3 minutes'
	$(PIP) $(EDITABLE) '.[dev]'
	@touch $@ .venv/installed .venv/installed-docs

$(LOWEST)/bin/python:
	@test -n "$(LOWEST_PYTHON)" && $(LOWEST_PYTHON) $(FOR_LOWEST) || \
		{ echo "the lowest versions need Python 3.11, found none that runs; try: make LOWEST_PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(LOWEST_PYTHON) -m venv $(LOWEST)

$(LOWEST)/installed-$(TORCH): pyproject.toml constraints-lowest.txt | $(LOWEST)/bin/python
	sed 's/^torch==.*/torch==$(TORCH)/' constraints-lowest.txt > $(LOWEST)/constraints.txt
	$(LOWEST_PIP) hatchling editables
	$(LOWEST_PIP) $(EDITABLE) '.[bayes,hub,sb3,tensorboard]' scikit-learn hypothesis jsonschema pytest pytest-xdist
	@rm -f $(LOWEST)/installed-*
	@touch $@

clean:
	rm -rf .venv .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
