# Every target makes .venv and installs into it when that is missing or out of date, and only then.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))
# In this order none waits long for what another one trains, and none is left to run alone.
FIRST  := $(foreach n,00 07 10 06 09,$(wildcard notebooks/$(n)_*.ipynb))
LONG   := sweeps/stl10.yaml sweeps/imagenet.yaml sweeps/tradeoffs.yaml
JOBS   ?= 2
WORKERS = $(shell expr 1 + `getconf _NPROCESSORS_ONLN`)  # as some tests wait for others' processes
GRIDS  ?= $(filter-out $(LONG),$(sort $(wildcard sweeps/*.yaml)))

unexport PYTHONDONTWRITEBYTECODE  # or each of hundreds of processes would compile the library anew

.DEFAULT_GOAL := help
.PHONY: help run test browser lab app notebooks lint bench sweep clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "This project needs Python 3.11 or newer and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]" -c constraints.txt
	@touch $@

run: $(READY) ## execute every notebook into runs/notebooks, JOBS=2 at a time, with an index at runs/index.html
	$(BIN)/redistill run $(FIRST) $(filter-out $(FIRST),$(NOTEBOOKS)) --jobs $(JOBS) --output runs/notebooks --index runs/index.html

test: $(READY) ## run the tests without those of make browser; with COVERAGE=--cov as CI does, a quarter slower
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not browser" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(COVERAGE)

browser: $(READY) ## open each notebook in JupyterLab and Chromium and move what moves; pictures are in runs/browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/test_browser.py

app: $(READY) ## open the explorer of the tour's networks as a page
	$(BIN)/redistill app

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY) ## execute the notebooks at their defaults and renew their committed outputs
	$(BIN)/redistill run --in-place $(NOTEBOOKS) --output runs/notebooks

lint: $(READY) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy redistill_lib

bench: $(READY) ## run each benchmark as its own command
	@set -e; for script in $(filter-out benchmarks/diffusion_report.py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "$(BIN)/python $$script"; $(BIN)/python $$script; done

sweep: $(READY) ## run the sweeps that take minutes, or those named in GRIDS="sweeps/a.yaml …"
	$(BIN)/redistill sweep $(GRIDS) --index runs/index.html

clean: ## remove caches and build leftovers; runs/, data/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find redistill_lib tests benchmarks notebooks -name __pycache__ -o -name .ipynb_checkpoints 2>/dev/null | xargs rm -rf
