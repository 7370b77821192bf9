"""Every recipe is read as its script reads it, and a variant changes what it says and no more."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import REPOSITORY

from trl_r1zero.commands.launch import DESCRIPTIONS
from trl_r1zero.commands.methods import MAKERS
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.devices import MachineFacts
from trl_r1zero.devices.memory import ParameterFacts, trainer_bytes
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server import VLLMServerConfig
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.runs.kinds import METHODS
from trl_r1zero.trainers.memory_limits import microbatch_limits

# recipes/experiments/ holds experiments, which vary recipes: tests/experiments/test_plan.py.
RECIPES = sorted(
    path for path in (REPOSITORY / "recipes").rglob("*.yaml") if "experiments" not in path.parts
)
# recipes/<model>/<method>[-variant].yaml is for a script, which takes these.
DATACLASSES = {**METHODS, "eval": (EvaluationArguments,)}
SCRIPTS = {method: f"{method}.py" for method in DATACLASSES} | {"eval": "evaluate.py"}
# Methods that train on a task, and methods that have data of their own.
TRAINING = ("grpo", "sft", "expert_iteration")
TUNING = ("instruction_tuning", "dpo")

QUICKSTART = REPOSITORY / "recipes" / "quickstart"
QWEN = REPOSITORY / "recipes" / "qwen2.5-math-1.5b"
LLAMA = REPOSITORY / "recipes" / "llama-3.1-8b"
# Each ablation: the values that differ from grpo.yaml's, besides output_dir.
ABLATIONS: dict[str, dict[str, Any]] = {
    "grpo-no_baseline": {"loss_type": "no_baseline", "use_std_normalization": False},
    "grpo-masked_normalize": {"aggregation": "masked_normalize", "normalize_constant": 1024.0},
    "grpo-no_std": {"use_std_normalization": False},
    "grpo-off_policy_1x256_no_clip": {"loss_type": "grpo_no_clip"},
    "grpo-off_policy_2x128": {
        "loss_type": "grpo_clip",
        "epochs_per_rollout_batch": 2,
        "train_batch_size": 128,
    },
    "grpo-off_policy_4x64": {
        "loss_type": "grpo_clip",
        "epochs_per_rollout_batch": 4,
        "train_batch_size": 64,
    },
    "grpo-no_clip": {
        "loss_type": "grpo_no_clip",
        "epochs_per_rollout_batch": 4,
        "train_batch_size": 64,
    },
    "grpo-question_only": {"prompt": "question_only"},
    "grpo-lr_3e-6": {"learning_rate": 3e-6},
    "grpo-lr_3e-5": {"learning_rate": 3e-5},
    "grpo-lr_1e-4": {"learning_rate": 1e-4},
}
# The same for sft.yaml and expert_iteration.yaml.
SFT_VARIANTS: dict[str, dict[str, Any]] = {
    "sft-128": {"num_examples": 128},
    "sft-256": {"num_examples": 256},
    "sft-512": {"num_examples": 512},
    "sft-1024": {"num_examples": 1024},
    "sft-filtered": {"filter_correct": True},
}
EI_VARIANTS: dict[str, dict[str, Any]] = {
    "expert_iteration-batch_1024": {"ei_batch_size": 1024},
    "expert_iteration-batch_2048": {"ei_batch_size": 2048},
    "expert_iteration-G_8": {"group_size": 8},
    "expert_iteration-G_16": {"group_size": 16},
    "expert_iteration-epochs_2": {"sft_epochs_per_step": 2},
}
# The same for recipes that are for another machine.
MACHINES: dict[str, dict[str, Any]] = {
    "grpo-one_gpu": {"vllm_server": {"devices": "0"}},
    "grpo-one_gpu_24gb": {
        "vllm_server": {"devices": "0"},
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "learning_rate": 3e-5,
    },
}
QUESTIONS = {**ABLATIONS, **SFT_VARIANTS, **EI_VARIANTS}
VARIANTS = {**QUESTIONS, **MACHINES}
# What the base recipes of these write out that is not a default: the model, the data, the machine.
OF_ALL_BASES = {
    "model_name_or_path": "Qwen/Qwen2.5-Math-1.5B",
    "train_data": "data/MATH/train.jsonl",
    "eval_data": "data/MATH/validation.jsonl",
    "prompt": "r1_zero",  # the task's own
    "seed": 0,
    "use_vllm": True,
    "vllm_server": {},
    "num_eval_examples": 1024,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "recipes"))


def method_of(path: Path) -> str:
    return path.stem.partition("-")[0]


def parse(path: Path):
    return parse_recipe(DATACLASSES[method_of(path)], ["--config", str(path)])


def differences(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != others[name]}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_parses(path):
    recipe = parse(path)
    values = recipe.values
    method = method_of(path)
    assert (REPOSITORY / "recipes" / SCRIPTS[method]).is_file()
    model_key = "model" if method == "eval" else "model_name_or_path"
    assert {model_key, "output_dir"} <= set(recipe.places)
    if method in TUNING:
        return
    assert "task" in recipe.places
    tasks = [(values["task"], values["task_args"])]
    if isinstance(values["task"], list):
        tasks = [(part.task, part.task_args) for part in recipe.instances[0].parts().values()]
    for name, task_args in tasks:
        task = get_task(name, **(task_args or {}))
        # Prompt and task go together; only free text is not graded.
        prompt = load_prompt(values["prompt"] or task.default_prompt)
        assert task.reward_fn(prompt) or prompt.answer_format == "text"


def test_output_folders_are_distinct():
    folders = [parse(path).values["output_dir"] for path in RECIPES]
    assert len(set(folders)) == len(RECIPES)


@pytest.mark.parametrize("method", [*TRAINING, *TUNING])
def test_a_script_reads_what_is_read_here(method):
    script = (REPOSITORY / "recipes" / SCRIPTS[method]).read_text(encoding="utf-8")
    assert f'train("{method}", __doc__)' in script
    assert method in MAKERS
    assert method in DESCRIPTIONS
    assert SCRIPTS[method] == f"{method}.py"


def test_every_recipe_says_what_it_is_for():
    for path in RECIPES:
        assert path.read_text(encoding="utf-8").startswith("# "), name_of(path)
    for name in QUESTIONS:
        first_line = (QWEN / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert "?" in first_line, name


# Training


def beyond_the_defaults(method: str) -> dict[str, Any]:
    """What the base recipe of a method says that is not the default."""
    values = parse(QWEN / f"{method}.yaml").values
    return differences(values, parse_recipe(DATACLASSES[method], []).values)


def test_the_default_recipe_is_the_handout():
    """What it writes out is also the default; the rest is the model, the data and the machine."""
    assert beyond_the_defaults("grpo") == {
        **OF_ALL_BASES,
        "output_dir": "runs/qwen2.5-math-1.5b/grpo",
        "use_std_normalization": True,  # what unset stands for with a baseline
        "eval_every": 10,
        "on_bad_row": "skip",
    }
    assert parse(QWEN / "grpo.yaml").instances[0].advantage == "group_mean_std"


def test_the_recipe_of_sft_is_the_handout():
    assert beyond_the_defaults("sft") == {
        **OF_ALL_BASES,
        "train_data": "data/MATH/sft.jsonl",
        "fix_whitespace": True,
        "output_dir": "runs/qwen2.5-math-1.5b/sft",
    }
    config = parse(QWEN / "sft.yaml").instances[0]
    assert (config.learning_rate, config.train_batch_size) == (2e-5, 32)
    assert (config.num_train_epochs, config.max_length, config.eval_every) == (1, 1024, 16)


def test_the_recipe_of_expert_iteration_is_the_handout():
    assert beyond_the_defaults("expert_iteration") == {
        **OF_ALL_BASES,
        "output_dir": "runs/qwen2.5-math-1.5b/expert_iteration",
        "group_size": 4,
        "on_bad_row": "skip",
    }
    config = parse(QWEN / "expert_iteration.yaml").instances[0]
    assert (config.learning_rate, config.train_batch_size) == (2e-5, 32)
    assert (config.n_ei_steps, config.ei_batch_size, config.sft_epochs_per_step) == (5, 512, 1)
    assert (config.temperature, config.min_tokens, config.max_completion_length) == (1.0, 4, 1024)


@pytest.mark.parametrize("method", TRAINING)
def test_a_base_recipe_writes_out_what_counts(method):
    """Whoever reads it need not know the defaults: batches, loss, optimizer, sampling."""
    written = set(parse(QWEN / f"{method}.yaml").places)
    of_all = {
        "seed",
        "train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "max_grad_norm",
        "min_tokens",
        "eval_every",
        "eval_temperature",
        "save_every",
    }
    own = {
        "grpo": {"n_grpo_steps", "rollout_batch_size", "group_size", "loss_type", "aggregation"},
        "sft": {"num_train_epochs", "max_length", "overlong", "normalize_constant"},
        "expert_iteration": {
            "n_ei_steps",
            "ei_batch_size",
            "group_size",
            "sft_epochs_per_step",
            "normalize_constant",
            "temperature",
            "max_completion_length",
        },
    }
    assert of_all | own[method] <= written


def test_every_variant_is_listed():
    trained = {path.stem for path in QWEN.glob("*.yaml") if method_of(path) in TRAINING}
    assert trained == {*TRAINING, *VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_in_its_own_keys_only(name):
    path = QWEN / f"{name}.yaml"
    values = parse(path).values
    changed = differences(values, parse(QWEN / f"{method_of(path)}.yaml").values)
    assert changed.pop("output_dir") == f"runs/qwen2.5-math-1.5b/{name}"
    assert changed == VARIANTS[name]


@pytest.mark.parametrize("name", [*TRAINING, *VARIANTS])
def test_a_recipe_leaves_micro_batches_to_memory(name):
    config = parse(QWEN / f"{name}.yaml").instances[0]
    assert (config.rows_per_microbatch, config.max_tokens_per_microbatch) == (None, None)
    # The handout's two rows, where memory says nothing.
    assert microbatch_limits(config.rows_per_microbatch, None, None, packed=False).rows == 2


def placed(path: Path, machine: str):
    """Where the run of a recipe puts its server, if the model has Qwen's size and AdamW."""
    config = parse(path)
    bytes_each = 2 if config.values["dtype"] == "bfloat16" else 4
    return resolve_server(
        VLLMServerConfig.from_settings(config.values["vllm_server"]),
        MachineFacts.assume(machine),
        TrainerFacts(
            num_trainers=1,
            trainer_on_cuda=machine != "cpu",
            server_on_cuda=machine != "cpu",
            trainer_bytes=trainer_bytes([ParameterFacts(1_543_714_304, bytes_each)], "adamw_torch"),
        ),
    )


@pytest.mark.parametrize(
    ("name", "machine", "server", "transfer", "sleep_level"),
    [
        ("grpo", "2x80GB", (1,), "nccl", 0),
        ("grpo", "8x80GB", (1,), "nccl", 0),
        ("grpo", "80GB", (0,), "ipc", 2),
        ("grpo-one_gpu", "80GB", (0,), "ipc", 2),
        ("grpo-one_gpu", "2x80GB", (0,), "ipc", 2),
        ("grpo-one_gpu_24gb", "24GB", (0,), "ipc", 2),
    ],
)
def test_each_recipe_has_its_machine(name, machine, server, transfer, sleep_level):
    config, placement = placed(QWEN / f"{name}.yaml", machine)
    assert (placement.server, placement.weight_transfer) == (server, transfer)
    assert config.sleep_level == sleep_level
    # The server's weights in bfloat16 are 3.1 GB; as much again is for its cache, at the least.
    total_bytes = MachineFacts.assume(machine).devices[0].total_bytes
    assert config.gpu_memory_utilization * total_bytes > 2 * 3.1e9


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("cpu", (None, 0, "gloo")), ("80GB", ("0", 2, "ipc")), ("2x24GB", ("1", 0, "nccl"))],
)
def test_the_quickstart_s_server_is_for_any_machine(machine, expected):
    config, _ = placed(QUICKSTART / "grpo-server.yaml", machine)
    assert (config.devices, config.sleep_level, config.weight_transfer) == expected


def test_float32_weights_leave_a_server_little_of_24_gb():
    """Which is why there is a recipe for that machine."""
    config, _ = placed(QWEN / "grpo-one_gpu.yaml", "24GB")
    assert config.gpu_memory_utilization * 24e9 < 2 * 3.1e9


@pytest.mark.parametrize("name", [*SFT_VARIANTS, *EI_VARIANTS])
def test_a_variant_is_one_line(name):
    lines = yaml.safe_load((QWEN / f"{name}.yaml").read_text(encoding="utf-8"))
    assert lines["base"] == f"{method_of(QWEN / name)}.yaml"
    assert set(lines) == {"base", "output_dir", *VARIANTS[name]}


def test_expert_iteration_covers_the_grid():
    """Each axis around its base: questions per EI step, answers per question, epochs."""
    paths = [path for path in QWEN.glob("*.yaml") if method_of(path) == "expert_iteration"]
    configs = [parse(path).instances[0] for path in paths]
    assert {config.ei_batch_size for config in configs} == {512, 1024, 2048}
    assert {config.group_size for config in configs} == {4, 8, 16}
    assert {config.sft_epochs_per_step for config in configs} == {1, 2}


def test_the_clip_ablation_is_one_line():
    lines = yaml.safe_load((QWEN / "grpo-no_clip.yaml").read_text(encoding="utf-8"))
    assert set(lines) == {"base", "output_dir", "loss_type"}
    clipped = parse(QWEN / lines["base"])
    assert clipped.values["loss_type"] == "grpo_clip"
    assert clipped.instances[0].updates_per_grpo_step > 1


# Tuning


def test_the_recipe_of_instruction_tuning_is_the_handout():
    values = parse(LLAMA / "instruction_tuning.yaml").values
    defaults = parse_recipe(DATACLASSES["instruction_tuning"], []).values
    assert differences(values, defaults) == {
        "model_name_or_path": "meta-llama/Llama-3.1-8B",
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "seed": 0,
        "output_dir": "runs/llama-3.1-8b/instruction_tuning",
    }
    assert (values["seq_length"], values["total_batch_size"]) == (512, 32)
    assert (values["learning_rate"], values["lr_scheduler_type"]) == (2e-5, "cosine")
    assert (values["warmup_steps"], values["num_train_epochs"]) == (0.03, 1)


def test_the_recipe_of_dpo_is_the_handout():
    values = parse(LLAMA / "dpo.yaml").values
    assert differences(values, parse_recipe(DATACLASSES["dpo"], []).values) == {
        "model_name_or_path": "runs/llama-3.1-8b/instruction_tuning/final",
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "seed": 0,
        "output_dir": "runs/llama-3.1-8b/dpo",
        "on_bad_row": "skip",
    }
    assert (values["beta"], values["train_batch_size"], values["num_eval_pairs"]) == (0.1, 64, 200)
    assert (values["optim"], values["learning_rate"]) == ("rmsprop", 1e-6)


# Evaluations


def test_the_evaluation_recipe_is_the_handout():
    """What it writes out is also the default; the rest is the model, the data and the folder."""
    values = parse(QWEN / "eval-math-r1_zero.yaml").values
    defaults = parse_recipe(DATACLASSES["eval"], ["--model", "some/model"]).values
    assert differences(values, defaults) == {
        "model": "Qwen/Qwen2.5-Math-1.5B",
        "data": "data/MATH/validation.jsonl",
        "prompt": "r1_zero",  # the task's own
        "output_dir": "runs/qwen2.5-math-1.5b/eval-math-r1_zero",
    }
    assert (values["temperature"], values["top_p"], values["n"]) == (1.0, 1.0, 1)
    assert (values["min_tokens"], values["max_tokens"]) == (4, 1024)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("eval-math-question_only", {"prompt": "question_only"}),
        ("eval-gsm8k", {"task": "gsm8k", "data": "openai/gsm8k@main:test"}),
    ],
)
def test_an_evaluation_differs_in_its_own_keys_only(name, changed):
    values = parse(QWEN / f"{name}.yaml").values
    differing = differences(values, parse(QWEN / "eval-math-r1_zero.yaml").values)
    assert differing == {"output_dir": f"runs/qwen2.5-math-1.5b/{name}", **changed}


# The quickstart


def test_the_quickstart_evaluates_as_it_trains():
    """The same questions and limits as the validation of the quickstart's own training."""
    training = parse(QUICKSTART / "grpo.yaml").values
    values = parse(QUICKSTART / "eval.yaml").values
    assert values["task"] == training["task"]
    assert values["num_examples"] == training["num_eval_examples"]
    assert values["max_tokens"] == training["max_completion_length"]
    assert values["model"] == training["model_name_or_path"]


def test_the_methods_of_the_quickstart_are_validated_alike():
    """So that the figures of the ways to train from the base policy can be compared."""
    names = ("grpo", "sft", "sft-filtered", "expert_iteration")
    recipes = [parse(QUICKSTART / f"{name}.yaml") for name in names]
    for recipe in recipes:
        values = recipe.values
        assert values["task"] == "chain_arithmetic"
        assert values["num_eval_examples"] == 512
        assert (values["eval_temperature"], values["eval_top_p"]) == (1.0, 1.0)
        length = values["eval_max_completion_length"] or values["max_completion_length"]
        assert length == 64
        # What all of them start from is the policy that sft-base_policy makes.
        base = parse(QUICKSTART / "sft-base_policy.yaml").values["output_dir"]
        assert values["model_name_or_path"] == f"{base}/final"


def test_the_filtered_quickstart_differs_in_its_own_keys_only():
    values = parse(QUICKSTART / "sft-filtered.yaml").values
    changed = differences(values, parse(QUICKSTART / "sft.yaml").values)
    assert changed == {"filter_correct": True, "output_dir": "runs/quickstart/sft/all-filtered"}


# Benchmarks of Llama 3.1 8B

BENCHMARKS: dict[str, dict[str, Any]] = {
    "mmlu": {"data": "cais/mmlu@all"},
    "gsm8k": {"data": "openai/gsm8k@main", "task_args": {"answer_line": True}},
    "alpaca_eval": {"data": "tatsu-lab/alpaca_eval"},
    "simple_safety_tests": {"data": "Bertievidgen/SimpleSafetyTests"},
}


def test_benchmarks_are_sampled_as_in_the_handout():
    values = parse(LLAMA / "eval-mmlu.yaml").values
    defaults = parse_recipe(DATACLASSES["eval"], ["--model", "meta-llama/Llama-3.1-8B"]).values
    assert differences(values, defaults) == {
        **BENCHMARKS["mmlu"],
        "server": {"max_model_len": 4096},
        "task": "mmlu",
        "prompt": "zero_shot",
        "temperature": 0.0,
        "min_tokens": 0,
        "output_dir": "runs/llama-3.1-8b/eval-mmlu",
    }
    assert (values["backend"], values["max_tokens"]) == ("vllm", 1024)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_a_benchmark_differs_in_its_task_only(task):
    values = parse(LLAMA / f"eval-{task}.yaml").values
    changed = differences(values, parse(LLAMA / "eval-mmlu.yaml").values)
    if task != "mmlu":
        assert changed.pop("output_dir") == f"runs/llama-3.1-8b/eval-{task}"
        assert changed == {"task": task, **BENCHMARKS[task]}
    # The data are the task's own: the recipe writes them out for whoever reads it.
    assert values["data"] == get_task(task).default_source


@pytest.mark.parametrize("task", BENCHMARKS)
@pytest.mark.parametrize("stage", ["instruction_tuning", "dpo"])
def test_a_tuned_model_differs_in_model_and_prompt_only(task, stage):
    values = parse(LLAMA / f"eval-{task}-{stage}.yaml").values
    assert differences(values, parse(LLAMA / f"eval-{task}.yaml").values) == {
        "model": f"runs/llama-3.1-8b/{stage}/final",
        "prompt": "alpaca",
        "output_dir": f"runs/llama-3.1-8b/eval-{task}-{stage}",
    }


def test_every_benchmark_recipe_is_listed():
    stages = ("", "-instruction_tuning", "-dpo")
    expected = {f"eval-{task}{stage}" for task in BENCHMARKS for stage in stages}
    assert {path.stem for path in LLAMA.glob("eval-*.yaml")} == expected
