# A fresh machine needs Python >= 3.11, git and make; then
#   make reproduce    sets up the environment and makes every table and figure
#   make test         sets up the environment if needed and checks everything
#   make benchmark    measures how fast it is
#   make rehearse     runs the workflow of the paper scale on small stand-ins
# In an environment that exists, `snakemake --cores all` does the same as `make reproduce`.

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11, \
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))) python3)
VENV := .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: reproduce benchmark rehearse faults test lint format environment lock artifacts clean

reproduce: environment
	snakemake --cores all

# The run at paper scale on small stand-ins for all data and models, from download to report: see CONTRIBUTING.md.
rehearse: environment
	python tests/rehearsal/run.py

# Every fault of docs/reliability.md, with a hundred kills instead of twenty; prints what it injected and where.
faults: environment
	SAFERCLIP_KILLS=100 pytest tests/faults

# How fast it is, against plain ways of doing the same: see docs/performance.md. FULL=--full takes the sizes given there.
benchmark: environment
	set -e; for script in $(filter-out benchmarks/common.py, $(wildcard benchmarks/*.py)); do \
		echo $$script; python $$script $(FULL); done

test: lint
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: environment
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --line-length 120 --check Snakefile workflow
	snakemake --lint

format: environment
	ruff check --fix .
	ruff format .
	snakefmt --line-length 120 Snakefile workflow

environment: $(VENV)/complete

$(VENV)/complete: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=<path>")'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Newest versions within the ranges of pyproject.toml, for every platform and Python at once.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
		--no-emit-index-url --upgrade pyproject.toml --output-file requirements.lock

# Version what the last run made: see CONTRIBUTING.md.
artifacts: environment
	dvc commit --force mini
	dvc push
	saferclip verify artifacts

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
