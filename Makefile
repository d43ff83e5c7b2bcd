# Every target makes its own virtual environment; the first one takes a few minutes.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test lint bench train seeds quality clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# The embedded model answers unpruned, with FastV and with FEATHER; pictures and numbers go to demo/.
demo: $(STAMP)
	$(RUN)/feathervlm demo --out demo

# What the tests of the lmms-eval plug-in need; without dependencies, which would bring torchvision.
TESTS := $(VENV)/.tests
$(TESTS): $(STAMP) tests/integrations/lmms_eval/requirements.txt
	$(RUN)/pip install --quiet --no-deps --requirement tests/integrations/lmms_eval/requirements.txt
	touch $(TESTS)

test: $(TESTS)
	$(RUN)/pytest --numprocesses 2

lint: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# What docs/performance.md and the README say about speed: about forty minutes on one core; do not run anything beside it.
BENCH := $(RUN)/feathervlm bench
SPEEDS := results/bench
bench: $(STAMP)
	$(BENCH) --rounds 9 --new-tokens 8 --out $(SPEEDS)/overhead-cpu.json --methods \
		feather:keep=1,fastv:layer=3,feather:layers=8+16,feather:layers=8+16,fixed=true,random:layer=3
	$(BENCH) --config tiny --rounds 5 --tokens 16,36,64,144,576,1024,2304,4096 \
		--methods fastv,feather,pyramiddrop,visionzip,divprune,uniform \
		--out $(SPEEDS)/tokens-cpu.json --plot $(SPEEDS)/tokens-cpu.png
	$(BENCH) --config tiny --rounds 2 --new-tokens 8 --tokens 4096,9216,16384 --methods fastv,feather \
		--out $(SPEEDS)/long-cpu.json --plot $(SPEEDS)/long-cpu.png
	$(BENCH) --config tiny --rounds 5 --batch 1,2,4,8,16,32 --methods fastv,feather,feather:fixed=true \
		--out $(SPEEDS)/batch-cpu.json --plot $(SPEEDS)/batch-cpu.png
	$(BENCH) --config tiny --rounds 5 --depth 4,8,16,32 --methods fastv,fastv:layer=3,feather \
		--out $(SPEEDS)/depth-cpu.json --plot $(SPEEDS)/depth-cpu.png
	$(BENCH) --batch 4 --ragged --rounds 2 --new-tokens 8 --methods fastv,feather --out $(SPEEDS)/ragged-cpu.json
	$(BENCH) --depth 4,8,24 --methods fastv,feather --out $(SPEEDS)/encoder-cpu.json --plot $(SPEEDS)/encoder-cpu.png
	$(RUN)/python scripts/generate_docs.py

# The embedded weights, from nothing: hours on two cores; a run that was interrupted goes on where it stood.
train: $(STAMP)
	$(RUN)/python -m training all --folder runs/shipped
	$(RUN)/python -m training export --folder runs/shipped

# Training seeds of the smaller recipe, to see which verdicts of the study depend on the seed: trains and measures
# each; hours in all on two cores. What is trained already is not trained again.
SEEDS := 0 1 2
IN := results/embedded
seeds: $(STAMP)
	for name in $(SEEDS:%=small-%); do \
		$(RUN)/python -m training all --folder runs/$$name --recipe small --seed $${name#small-} && \
		$(RUN)/python -m training export --folder runs/$$name --recipe small --target $(IN)/$$name && \
		mkdir -p $(IN)/training/$$name && cp runs/$$name/*.jsonl $(IN)/training/$$name && \
		$(RUN)/python scripts/embedded_quality.py --n 500 --weights $(IN)/$$name --out $(IN)/quality-$$name.json && \
		$(RUN)/python scripts/attention_on_target.py --weights $(IN)/$$name --out $(IN)/lookup-$$name.json && \
		$(RUN)/feathervlm study --model $(IN)/$$name --n 50 --seed 1 --out runs/study-$$name && \
		mkdir -p results/study-$$name && cp runs/study-$$name/findings.json runs/study-$$name/runs.json results/study-$$name || exit 1; \
	done
	$(RUN)/python scripts/generate_docs.py

# What README, model card and docs/study.md say about the shipped weights: about an hour on two cores.
quality: $(STAMP)
	$(RUN)/python scripts/embedded_quality.py
	$(RUN)/python scripts/attention_on_target.py
	$(RUN)/feathervlm study --seed 1 --out results/study $(patsubst %,--beside %,$(wildcard results/study-small-*))
	$(RUN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) demo
