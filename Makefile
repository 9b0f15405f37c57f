# `make demo` and `make test` need only Python >= 3.11, make and git; both install into .venv on their first call.
PYTHON ?= python3
BIN := .venv/bin
DEMOS := demo_l2p demo_finetune demo_linear

.PHONY: demo compare test test-long test-gpu test-slurm lint clean

demo: .venv/.installed
	@for experiment in $(DEMOS); do $(BIN)/python main.py $$experiment --overwrite || exit $$?; done
	@$(BIN)/python -m reproducing.compared $(addprefix output/,$(DEMOS))

# All methods and baselines on the demo's images, in output/reproduce/demo.
compare: .venv/.installed
	@$(BIN)/python reproduce.py demo --device cpu

test: lint
	$(BIN)/python -m pytest

# The demo killed at twenty random moments, printing where each landed; and more cases of what `test` tries once.
test-long: .venv/.installed-dev
	$(BIN)/python -m pytest -n 0 -m long

# What needs a CUDA GPU; all other tests run as if there were none.
test-gpu: .venv/.installed-dev
	$(BIN)/python -m pytest -n 0 -m gpu

# Needs Debian's slurm-wlm and munge, or the same from elsewhere; without sbatch its tests are skipped.
test-slurm: .venv/.installed-dev
	$(BIN)/python -m pytest -n 0 -m slurm tests/slurm

lint: .venv/.installed-dev
	$(BIN)/ruff check .

# The stamps are newer than the files they were made from as long as nothing needs installing again.
.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(BIN)/pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
