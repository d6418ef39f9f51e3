# make demo   everything that is needed, then the stop-gradient study on real images, with its report
# make test   everything that is needed, then lint, types, tests
# make test-gpu, bench-gpu   tests and speed on an NVIDIA GPU; bench-gpu ends in a table for docs/performance.md
# make test-cluster   tests on a real SLURM, started for them on this machine: as root, with its packages installed
# Both set up a virtual environment of their own in .venv and need nothing but Python >= 3.10, git and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python run_ablation.py

.PHONY: results demo test test-cluster test-gpu test-lowest test-pythons lint docs lock schemas bench bench-gpu clean
.DEFAULT_GOAL := demo

# Stamps say which part of the environment is in place; a changed pyproject.toml renews it.
$(VENV)/installed: pyproject.toml
	@echo "Setting up $(VENV) (once; PyTorch is large, this takes some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo:
	@echo "Demo: trains a small SimSiam on CIFAR-10, or else on Fashion-MNIST, with and without stop-gradient (Fig. 2 of"
	@echo "the paper) and reports on it: 6 runs, about 10 minutes on 2 CPU cores, after setting up $(VENV) (once)."
	@echo "Stop it at any time; 'make demo' goes on from there."
	@$(MAKE) --no-print-directory $(VENV)/installed
	$(RUN) demo
	@echo "More: source $(BIN)/activate, then python run_ablation.py list"

# The tests of a file run in one process, files side by side: WORKERS=1 for one after another.
WORKERS  ?= auto
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

test-cluster: $(VENV)/installed-dev
	ABLATION_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -v

# On an NVIDIA GPU, or on all there are. DEVICE=cpu tries the tests' own logic where there is none.
test-gpu: $(VENV)/installed-dev
	ABLATION_TEST_GPU=$(or $(DEVICE),cuda) CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest tests/gpu

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lower bounds of pyproject.toml, installed and tested in an environment of their own.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(PARALLEL)

# The documentation as a site, in site/; a warning is an error, and links and anchors are checked.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open site/index.html"

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

# The results in docs/, from the runs of the campaign that ship with it.
CAMPAIGN := --scale cpu --set data.name=folder --set data.path=cifar10 --set precision=bfloat16 --runs docs/campaign.tar.xz
FIGURES  := stop-gradient/figure-positive-cosine-uniformity-centre stop-gradient/figure-spectrum \
  predictor/figure batch-norm/figure batch-size/figure-sweep-batch-size comparison/figure-sweep-epochs \
  output-dimension/figure-sweep-projector-output-dim cifar10/figure-linear small-models/figure-sweep-backbone-width
results: $(VENV)/installed
	$(RUN) report all $(CAMPAIGN) --out reports/campaign --markdown docs/results-cpu.md
	$(RUN) report paper $(CAMPAIGN) --out reports/campaign-paper --markdown docs/results-paper.md
	for name in $(FIGURES); do \
	  cp reports/campaign/$${name%/*}-data*/$${name#*/}.svg docs/figures/$${name%/*}-$${name#*/}.svg || exit 1; done
	cp reports/campaign/stop-gradient-data*/figure.png docs/stop-gradient-cpu.png

# The JSON Schemas of the YAML files, from the models that read them.
schemas: $(VENV)/installed
	for kind in study scale method cluster; do $(RUN) schema $$kind > experiments/schemas/$$kind.json || exit 1; done

# The tests on every Python from 3.10 on that is installed here, each in an environment of its own; PYTHONS="3.10 3.13"
# chooses. One that fails does not keep the others from being tested.
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
test-pythons:
	@export PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd: -); failed=; for version in $(PYTHONS); do \
	  python$$version -c '' 2>/dev/null || { echo "Python $$version: not installed here"; continue; }; \
	  echo "Python $$version"; \
	  { python$$version -m venv .venv-$$version && \
	    .venv-$$version/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' && \
	    .venv-$$version/bin/python -m pytest $(PARALLEL) $(TESTS); } || failed="$$failed $$version"; \
	done; test -z "$$failed" || { echo "failed on Python$$failed"; exit 1; }

# Exact versions with hashes, newest first, within the ranges of pyproject.toml; keeps the head of the file.
lock: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet uv
	grep '^#' requirements.lock > requirements.lock.new
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet >> requirements.lock.new
	mv requirements.lock.new requirements.lock

# Speed beside the peers, which are pinned and live in an environment of their own. QUICK=1 takes under 5 minutes;
# DATA=DIR (with cifar10/{train,test}/CLASS/IMAGE and photographs/ in it) adds the rows that need real images.
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(DATA),--data $(DATA))

bench-gpu: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.gpu

.venv-bench/installed: pyproject.toml benchmarks/requirements.txt
	@echo "Setting up .venv-bench (once; PyTorch is large, this takes some minutes)"
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt --editable .
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.* .venv-lowest .venv-bench build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find simsiam experiments analysis commands tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
