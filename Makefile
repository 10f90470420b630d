# Two commands on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first Python of 3.11 to 3.13 that runs here; PYTHON=... names another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Exact versions of everything that is installed; `make lock` writes them, `kd doctor` reads them.
LOCK ?= src/kdcli/constraints.txt
EXTRAS := track,lora,quant,gguf,onnx,slurm,ray,bench
RESOLVE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --prerelease disallow --group dev --all-extras \
	--no-emit-index-url --no-header --no-annotate pyproject.toml
SMOKE := tests/generation/test_answers.py tests/generation/test_company.py tests/models/test_save.py tests/teachers/test_teacher_cache.py \
	tests/journeys/test_demo.py

.PHONY: demo test test-full teeth soak check lint types imports docs fast fix lock newest newest-smoke lowest clean

demo: $(STAMP)
	$(BIN)/kd demo

test: $(STAMP)
	LOCK_UNDER_TEST=$(LOCK) $(BIN)/pytest

test-full: $(STAMP)
	LOCK_UNDER_TEST=$(LOCK) $(BIN)/pytest -m "full or not full" --jaxtyping-packages=kdcli,beartype.beartype

# Seeds known bugs one at a time and shows which of them the tests see.
teeth: $(STAMP)
	$(BIN)/python -m tests.seeded

# Half an hour of trainings, comparisons and caches under kills, two writers and full disks; memory must not grow.
soak: $(STAMP)
	$(BIN)/python -m tests.soak

fast: $(STAMP)
	$(BIN)/pytest -m "not slow and not full"

check: lint types imports docs test

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP)
	$(BIN)/lint-imports --no-cache

docs: $(STAMP)
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

fix: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs
	$(BIN)/python docs/generate.py

# One resolution for Python 3.11 and later on Linux and macOS, with markers; no index, no hashes.
lock: .venv/.installed
	$(RESOLVE) --upgrade --output-file src/kdcli/constraints.txt

# The suite with the newest, and with the lowest, versions that pyproject.toml allows, each in an environment of its own.
newest: .venv/.installed
	mkdir -p build
	$(RESOLVE) --upgrade --output-file build/newest.txt
	$(MAKE) test VENV=.venv-newest LOCK=build/newest.txt

lowest: .venv/.installed
	mkdir -p build
	$(RESOLVE) --upgrade --resolution lowest-direct --output-file build/lowest.txt
	$(MAKE) test VENV=.venv-lowest LOCK=build/lowest.txt

newest-smoke: .venv/.installed
	mkdir -p build
	$(RESOLVE) --upgrade --output-file build/newest.txt
	diff src/kdcli/constraints.txt build/newest.txt || true
	$(MAKE) .venv-newest/.installed VENV=.venv-newest LOCK=build/newest.txt
	LOCK_UNDER_TEST=build/newest.txt .venv-newest/bin/pytest -p no:cacheprovider $(SMOKE)

$(STAMP): pyproject.toml $(LOCK)
	@test -n "$(PYTHON)" || { echo "no Python of 3.11 or later is here; name one: make PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint $(LOCK) pip
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) --build-constraint $(LOCK) --editable ".[$(EXTRAS)]" --group dev
	touch $(STAMP)

clean:
	rm -rf .venv .venv-newest .venv-lowest build dist demo src/*.egg-info .pytest_cache .ruff_cache .hypothesis
