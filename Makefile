# Every target makes its own virtual environment; the first one takes a few minutes.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# A model with random weights is asked about a drawn scene: the answer is noise, the kept tokens and times are real.
demo: $(STAMP)
	$(RUN)/python examples/make_demo_model.py demo
	$(RUN)/feathervlm run --model demo --image demo/scene.png --prompt "Where is the red circle?" \
		--method feather --max-new-tokens 16 --overlay demo/kept.png

test: $(STAMP)
	$(RUN)/pytest --numprocesses 2

lint: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# About three minutes on one core; do not run anything beside it.
bench: $(STAMP)
	$(RUN)/python benchmarks/overhead.py --out results/bench/overhead-cpu.json

clean:
	rm -rf $(VENV) demo
