# make demo    trains DDPM and E-TSDM side by side and writes nearzero-demo/index.html (four minutes)
# make test    runs the tests
# make proofs  runs the proofs of many minutes
# make lint    ruff and pyright
# make docs    builds the documentation into site/
# make clean   removes .venv and what the other targets made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test proofs lint docs clean

demo: $(READY)
	@$(BIN)/nearzero demo

test: $(READY)
	@$(BIN)/python -m pytest -n auto --dist worksteal --durations 30 --durations-min 5

proofs: $(READY)
	@$(BIN)/python -m pytest -m slow

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(READY)
	@$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist build nearzero-demo

# The stamp is written last: a half-installed .venv is installed again, a ready one starts at once and offline.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "nearzero needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "this Python has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' 2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	@touch $(READY)
