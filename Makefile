# make demo · make test · make bench · make lint — each sets up what it needs in .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
EXAM := dataset/demo/generated/ceval-exam

.PHONY: help demo demo-short test bench lint format clean-demo
help:
	@grep -E '^#|^[a-z-]+:.*##' Makefile | sed 's/:.*##/  /; s/^# //'

# A stamp per requirements file: setting up happens once, and again when the file changes.
$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed")'
	@$(PYTHON) -m venv $(VENV) || (echo "error: could not make $(VENV); on Debian or Ubuntu: apt install python3-venv" >&2; exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.runtime ## raw text → tokenizer → ids → a model that speaks → its exam, in minutes on a CPU
	$(BIN)/python data_process.py demo
	$(BIN)/python train_tokenizer.py --data_path dataset/demo/generated/pretrain.jsonl --vocab_size 6400 --out_dir $(DEMO)/tokenizer
	$(BIN)/python data_process.py pretrain --input dataset/demo/generated/pretrain.jsonl --output $(DEMO)/pretrain.bin --tokenizer $(DEMO)/tokenizer
	$(BIN)/python 1-pretrain.py --data_path $(DEMO)/pretrain.bin --out_dir $(DEMO) $(DEMO_FLAGS)
	$(BIN)/python 2-eval.py --out_dir $(DEMO) --temperature 0 --max_new_tokens 40 < /dev/null
	$(BIN)/python ceval_eval.py --data_dir $(EXAM) --scoring cloze --out_dir $(DEMO) --results_dir $(DEMO)/ceval
	@echo "Talk to it:  $(BIN)/python 2-eval.py --out_dir $(DEMO)"

# Rows of 128, because no demo document is much longer. Muon needs half of AdamW's tokens here; masked documents are read
# as the exam asks, each on its own; a little dropout, since every fact is seen about 90 times. See README.md for the figures.
DEMO_FLAGS ?= --preset tiny --max_seq_len 128 --batch_size 16 --accumulation_steps 1 --max_steps 600 --optimizer muon \
	--learning_rate 3e-3 --dropout 0.05 --doc_mask --compile off

demo-short: ## the same in 3 steps: shows that it runs, not what it learns
	$(MAKE) demo DEMO=out/demo-short DEMO_FLAGS="--preset tiny --max_seq_len 128 --batch_size 8 --accumulation_steps 1 --max_steps 3 --fresh"

test: $(VENV)/.dev ## all tests, with the coverage of model/ and trainer/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=model --cov=trainer --cov-report=term:skip-covered --cov-fail-under=90 $(TESTS)

bench: $(VENV)/.dev ## training speed against the plain recipe, on the demo's text
	$(BIN)/python data_process.py demo
	$(BIN)/python benchmarks/train_speed.py --data_path dataset/demo/generated/pretrain.jsonl

lint: $(VENV)/.dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-demo: ## forget the demo's model and data
	rm -rf out/demo out/demo-short dataset/demo/generated
