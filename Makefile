# Every target makes its own virtual environment; the first one takes a few minutes.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test lint bench train quality clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# The embedded model answers unpruned, with FastV and with FEATHER; pictures and numbers go to demo/.
demo: $(STAMP)
	$(RUN)/feathervlm demo --out demo

test: $(STAMP)
	$(RUN)/pytest --numprocesses 2

lint: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# About three minutes on one core; do not run anything beside it.
bench: $(STAMP)
	$(RUN)/python benchmarks/overhead.py --out results/bench/overhead-cpu.json

# The embedded weights, from nothing: hours on two cores; a run that was interrupted goes on where it stood.
train: $(STAMP)
	$(RUN)/python -m training all --folder runs/base-0
	$(RUN)/python -m training export --folder runs/base-0

# What README, model card and docs/study.md say about the embedded model: about an hour on two cores.
quality: $(STAMP)
	$(RUN)/python benchmarks/embedded.py
	$(RUN)/feathervlm study --out results/study
	$(RUN)/python tools/readme_tables.py

clean:
	rm -rf $(VENV) demo
