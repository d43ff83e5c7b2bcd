# Every target makes its own virtual environment; the first one takes a few minutes.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.PHONY: demo test test-full test-app screenshots test-vllm load bench-serving lint docs notebooks bench train quality clean

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
	$(RUN)/pytest --numprocesses 2 --dist loadfile

# Every law on every pair of a method and a model, and more examples of every property: before a change of the engine lands.
test-full: $(TESTS)
	$(RUN)/pytest --numprocesses 2 -m '' --hypothesis-profile full

# The page in a real browser. gradio takes no Pillow from 13 on, so it has an environment of its own, which shares torch and the other
# large packages with the first one. The two runs are two because a browser leaves an event loop behind.
APP := $(VENV)/app
$(APP)/.installed: $(STAMP)
	$(PYTHON) -m venv $(APP)
	$(RUN)/python -c 'import site; print(*site.getsitepackages())' > "$$(echo $(APP)/lib/python*/site-packages)/shared.pth"
	sed 's/^pillow==.*/pillow<13/' constraints.txt > $(APP)/constraints.txt
	$(APP)/bin/pip install --quiet --constraint $(APP)/constraints.txt --editable '.[app]' playwright pytest 'pillow<13'
	touch $@

test-app: $(APP)/.installed
	$(APP)/bin/python -m pytest tests/app/test_page_server.py
	$(APP)/bin/python -m pytest tests/app/browser

screenshots: $(APP)/.installed
	FEATHERVLM_SCREENSHOTS=docs $(APP)/bin/python -m pytest tests/app/browser

# The vLLM plug-in, on a CPU: vLLM pins its own torch and transformers, so it has an environment of its own. The shim lets
# torchvision be imported beside a torch for CPUs. Every file starts an engine, and has a process of its own for that.
# With FEATHERVLM_VLLM_COMPILE=1 vLLM compiles the language model, which takes some minutes more.
VLLM := .venv-vllm
VLLM_TESTS := tests/integrations/vllm
VLLM_RUN := PYTHONPATH=$(VLLM_TESTS)/shim OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet torch==2.13.0
	$(VLLM)/bin/pip install --quiet --no-deps --require-hashes --requirement constraints-vllm.txt
	$(VLLM)/bin/pip install --quiet --no-deps --editable .
	touch $@

test-vllm: $(VLLM)/.installed
	for file in $(VLLM_TESTS)/test_*.py; do $(VLLM_RUN) $(VLLM)/bin/pytest -p no:cacheprovider $$file || exit 1; done

# A server of the embedded model under load and faults: docs/results/serving.md. About ten minutes on two cores.
load: $(STAMP) $(VLLM)/.installed
	$(VLLM_RUN) $(VLLM)/bin/python scripts/load_test.py --engine vllm --out results/serving/load-vllm.json
	OMP_NUM_THREADS=1 $(RUN)/python scripts/load_test.py --engine transformers --out results/serving/load-transformers.json
	$(RUN)/python scripts/generate_docs.py

# What pruning gains in vLLM, next to the HF engine: docs/results/serving.md. Run nothing else meanwhile.
bench-serving: $(STAMP) $(VLLM)/.installed
	$(VLLM_RUN) $(VLLM)/bin/python scripts/bench_serving.py --model embedded --out results/serving/bench-embedded.json
	$(VLLM_RUN) $(VLLM)/bin/python scripts/bench_serving.py --model llava-170m --requests 4 --batch 4 --rounds 2 \
		--out results/serving/bench-170m.json
	$(RUN)/python scripts/generate_docs.py

lint: $(STAMP)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# The site in site/; a broken link or a missing docstring is an error. It reads the source without importing it, so its
# environment has no torch.
SITE := $(VENV)/docs
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
$(SITE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(PYTHON) -c '$(EXTRA)' > $(SITE)/requirements.txt
	$(SITE)/bin/pip install --quiet --constraint constraints.txt --requirement $(SITE)/requirements.txt
	touch $@

# Without --quiet, which also keeps warnings from failing the build. The variable silences an announcement of the theme.
docs: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --site-dir site
	@echo "open site/index.html"

# Run the notebooks of docs/notebooks and store their outputs: about two minutes on one core.
notebooks: $(STAMP)
	$(RUN)/python scripts/run_notebooks.py

# The measurements of docs/results/performance.md and README: about forty minutes on one core. Run nothing else meanwhile.
BENCH := $(RUN)/feathervlm bench --force
SPEEDS := results/bench
FIGURES := docs/results/figures
bench: $(STAMP)
	$(BENCH) --rounds 9 --new-tokens 8 --out $(SPEEDS)/overhead-cpu.json --methods \
		'feather:keep=1,fastv,feather,before-llm:method=(feather),feather:fixed=true,random'
	$(BENCH) --config tiny --rounds 5 --tokens 16,36,64,144,576,1024,2304,4096 \
		--methods fastv,feather,pyramiddrop,visionzip,divprune,uniform \
		--out $(SPEEDS)/tokens-cpu.json --plot $(FIGURES)/tokens-cpu.png
	$(BENCH) --config tiny --rounds 2 --new-tokens 8 --tokens 4096,9216,16384 --methods fastv,feather \
		--out $(SPEEDS)/long-cpu.json --plot $(FIGURES)/long-cpu.png
	$(BENCH) --config tiny --rounds 5 --batch 1,2,4,8,16,32 --methods fastv,feather,feather:fixed=true \
		--out $(SPEEDS)/batch-cpu.json --plot $(FIGURES)/batch-cpu.png
	$(BENCH) --config tiny --rounds 5 --depth 4,8,16,32 --methods fastv,fastv:layer=3,feather \
		--out $(SPEEDS)/depth-cpu.json --plot $(FIGURES)/depth-cpu.png
	$(BENCH) --batch 4 --ragged --rounds 2 --new-tokens 8 --methods fastv,feather --out $(SPEEDS)/ragged-cpu.json
	$(BENCH) --depth 4,8,24 --methods fastv,feather --out $(SPEEDS)/encoder-cpu.json --plot $(FIGURES)/encoder-cpu.png
	$(RUN)/python scripts/generate_docs.py

# Train a seed of the next embedded model from scratch (training/README.md): half a day on one core. An interrupted run is resumed.
SEED ?= 0
train: $(STAMP)
	$(RUN)/python -m training all --folder runs/seed-$(SEED) --seed $(SEED)
	$(RUN)/python -m training layers --folder runs/seed-$(SEED) --seed $(SEED) --target runs/seed-$(SEED)/layers.json
	$(RUN)/python -m training export --folder runs/seed-$(SEED) --target runs/models/seed-$(SEED)

# The measurements of README, model card and docs/results/study.md: about an hour on two cores.
quality: $(STAMP)
	$(RUN)/python scripts/embedded_quality.py
	$(RUN)/python scripts/attention_on_target.py
	$(RUN)/python scripts/forward_figure.py
	$(RUN)/feathervlm study --seed 1 --out runs/study $(patsubst %,--beside %,$(wildcard results/study-small-*))
	cp runs/study/*.json results/study
	cp runs/study/figures/*.png docs/results/figures
	$(RUN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) $(VLLM) demo site
