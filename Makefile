# make demo · make test · make bench · make lint — each sets up what it needs in .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
DATA := dataset/demo/generated

.PHONY: help demo demo-chat demo-short test test-cluster bench lint format clean-demo
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

demo: $(VENV)/.runtime ## raw text → tokenizer → a model that speaks → its exam → chat, persona, preferences → a report; minutes on a CPU
	$(BIN)/python data_process.py demo
	$(BIN)/python train_tokenizer.py --data_path $(DATA)/pretrain.jsonl --exclude $(DATA)/phrases.txt --vocab_size 6400 --out_dir $(DEMO)/tokenizer
	$(BIN)/python data_process.py pretrain --input $(DATA)/pretrain.jsonl --output $(DEMO)/pretrain.bin --tokenizer $(DEMO)/tokenizer
	$(BIN)/python 1-pretrain.py --data_path $(DEMO)/pretrain.bin --out_dir $(DEMO) $(DEMO_FLAGS)
	$(call SAMPLE,pretrain_256)
	$(BIN)/python ceval_eval.py --data_dir $(DATA)/ceval-exam --scoring cloze --model $(DEMO)/pretrain_256.pth --results_dir $(DEMO)/ceval/pretrain_256
	$(MAKE) --no-print-directory demo-chat demo-letters
	$(BIN)/python -m evaluation.report --out_dir $(DEMO)
	@echo "Talk to it:  $(BIN)/python 2-eval.py --out_dir $(DEMO)      with its persona: --lora persona"

demo-chat: $(VENV)/.runtime ## the second half of the demo: from the pretrained model to chat, a persona and preferences
	$(BIN)/python 3-full_sft.py --data_path $(DATA)/sft.jsonl --out_dir $(DEMO) $(SFT_FLAGS)
	$(call SAMPLE,full_sft_256)
	$(SCORE) $(DATA)/questions_unseen.jsonl --model $(DEMO)/full_sft_256.pth
	$(BIN)/python 4-lora_sft.py --data_path $(DATA)/persona.jsonl --lora_name persona --out_dir $(DEMO) $(LORA_FLAGS)
	$(call SAMPLE,lora_persona_256)
	$(SCORE) $(DATA)/questions_persona.jsonl --model $(DEMO)/full_sft_256.pth --lora persona
	$(SCORE) $(DATA)/questions_unseen.jsonl --model $(DEMO)/full_sft_256.pth --lora persona
	$(BIN)/python 5-dpo_train.py --data_path $(DATA)/dpo.jsonl --out_dir $(DEMO) $(DPO_FLAGS)
	$(SCORE) $(DATA)/questions_unseen.jsonl --model $(DEMO)/dpo_256.pth
	$(call SAMPLE,dpo_256)
	$(BIN)/python ceval_eval.py --data_dir $(DATA)/ceval-exam --results_dir $(DEMO)/ceval --compare $(foreach m,pretrain full_sft dpo,$(DEMO)/$(m)_256.pth)

demo-letters: $(VENV)/.runtime ## from the pretrained model to one that names the right option by its letter, also of facts it never practised
	$(BIN)/python 3-full_sft.py --data_path $(DATA)/choices.jsonl --init_from $(DEMO)/pretrain_256.pth --out_dir $(DEMO)/letters_alone $(LETTERS_ALONE)
	$(BIN)/python 3-full_sft.py --data_path $(DATA)/choices.jsonl --init_from $(DEMO)/letters_alone/full_sft_256.pth --out_dir $(DEMO)/letters $(LETTERS_FLAGS)
	$(BIN)/python ceval_eval.py --data_dir $(DATA)/ceval-exam --model $(DEMO)/letters/full_sft_256.pth --results_dir $(DEMO)/ceval/letters

# Rows of 128, because no demo document is much longer. Muon needs half of AdamW's tokens here; masked documents are read
# as the exam asks, each on its own. See README.md for the figures.
STEP := --batch_size 16 --accumulation_steps 1 --compile off
DEMO_FLAGS ?= --preset tiny --max_seq_len 128 --max_steps 900 --min_lr_ratio 0 --optimizer muon --learning_rate 3e-3 --dropout 0.05 --doc_mask $(STEP)
# Two thirds of the rows are pretraining text and the rate is low, or the facts that chat leaves out are forgotten: at 5e-4
# without old text 69 % of them were answered, with these settings 89 to 91 %; half of the rows in one epoch cost 1.3 points.
SFT_FLAGS ?= --epochs 2 --learning_rate 1e-4 --replay 0.67 --replay_path $(DEMO)/pretrain.bin $(STEP)
# Looking up a letter is learnt all at once, after some 300 steps of nothing else at a high rate (dropout or old text among
# it and it is not learnt); that costs most facts, which come back with old text and a lower rate.
LETTERS_ALONE ?= --epochs 1 --optimizer muon --learning_rate 3e-3 --min_lr_ratio 0 --dropout 0 $(STEP)
LETTERS_FLAGS ?= --epochs 2 --optimizer muon --learning_rate 2e-3 --min_lr_ratio 0 --replay 0.5 --replay_path $(DEMO)/pretrain.bin $(STEP)
LORA_FLAGS ?= --epochs 14 --learning_rate 2.5e-3 $(STEP)
DPO_FLAGS ?= --epochs 3 --learning_rate 5e-6 --beta 0.3 --val_fraction 0.15 $(STEP)
SAMPLE = $(BIN)/python 2-eval.py --model $(DEMO)/$(1).pth --temperature 0 --max_new_tokens 40 --out $(DEMO)/samples/$(1).jsonl < /dev/null
SCORE := $(BIN)/python -m evaluation.answers --out_dir $(DEMO) --questions

demo-short: ## the same in 3 steps a stage: shows that it runs, not what it learns
	$(MAKE) demo DEMO=out/demo-short DEMO_FLAGS="--preset tiny --max_seq_len 128 $(SHORT)" SFT_FLAGS="$(SHORT)" \
		LETTERS_ALONE="$(SHORT)" LETTERS_FLAGS="$(SHORT)" LORA_FLAGS="$(SHORT)" DPO_FLAGS="$(SHORT)" SCORE="$(SCORE_SHORT)"
SHORT := --batch_size 8 --accumulation_steps 1 --max_steps 3 --fresh
SCORE_SHORT = $(BIN)/python -m evaluation.answers --out_dir out/demo-short --max_new_tokens 4 --questions

test: $(VENV)/.dev ## all tests, with the coverage of model/ and trainer/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=model --cov=trainer --cov-report=term:skip-covered --cov-fail-under=90 $(TESTS)

test-cluster: $(VENV)/.dev ## the tests of cleaning on a cluster, which need datatrove and Ray besides (500 MB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py

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
