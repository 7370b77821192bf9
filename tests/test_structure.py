"""The shape of the package: who imports whom, what is public, and what it relies on in TRL."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from tiny_models import make_tiny_model
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, use_adapter

import trl_r1zero
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.trainers import R1ZeroGRPOTrainer

PACKAGE = Path(trl_r1zero.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A row imports only from itself and from rows above it.
LAYERS = ("functional", "rewards", "data", "generation", "evaluation", "trainers", "top")
# Except that these two know nothing of one another.
STRANGERS = {("functional", "rewards"), ("rewards", "functional")}
MAX_LINES = 500


def layer(module: str) -> str:
    """trl_r1zero.data.tasks.math -> data; a module beside the packages, and the root -> top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "top"


def module_name(path: Path) -> str:
    parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions and for types too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            # `from trl_r1zero import data` names a module, `from trl_r1zero import get_task` none.
            names |= {
                f"{source}.{alias.name}"
                if source == PACKAGE.name and (PACKAGE / alias.name).is_dir()
                else source
                for alias in node.names
            }
    return names


def imported_layers(path: Path) -> set[str]:
    return {layer(name) for name in imports(path) if name.split(".")[0] == PACKAGE.name}


def in_layer(*names: str) -> list[Path]:
    return [path for path in MODULES if layer(module_name(path)) in names]


# Layers


def test_every_package_is_a_layer():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LAYERS) - {"top"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_row_imports_only_from_rows_above(path):
    own = layer(module_name(path))
    allowed = set(LAYERS[: LAYERS.index(own) + 1])
    allowed -= {other for name, other in STRANGERS if name == own}
    assert imported_layers(path) <= allowed


def test_imports_are_seen():
    """The test above would pass too if it saw nothing."""
    assert imported_layers(PACKAGE / "trainers" / "grpo_trainer.py") >= {
        "functional",
        "generation",
        "evaluation",
        "trainers",
    }
    assert imported_layers(PACKAGE / "task_arguments.py") >= {"data", "rewards", "trainers"}
    assert "torch" in imports(PACKAGE / "functional" / "masking.py")


@pytest.mark.parametrize("path", in_layer("functional"), ids=module_name)
def test_functional_needs_torch_only(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert packages <= {"torch", PACKAGE.name, *sys.stdlib_module_names}


@pytest.mark.parametrize("path", in_layer("rewards"), ids=module_name)
def test_rewards_need_no_torch(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert not packages & {"torch", "transformers", "trl", "accelerate", "datasets", "peft"}


@pytest.mark.parametrize("statement", ["import trl_r1zero", "import trl_r1zero.rewards"])
def test_import_without_torch(statement):
    code = f"{statement}; import sys; print({{'torch', 'transformers', 'trl'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_is_readable_in_one_sitting(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines; split it"


# Public names

PUBLIC_NAMES = [
    "__version__",
    "masked_mean",
    "masked_normalize",
    "compute_entropy",
    "get_response_log_probs",
    "compute_group_advantages",
    "compute_group_normalized_rewards",
    "compute_naive_policy_gradient_loss",
    "compute_grpo_clip_loss",
    "compute_grpo_no_clip_loss",
    "compute_policy_gradient_loss",
    "aggregate_loss",
    "sft_microbatch_train_step",
    "grpo_microbatch_train_step",
    "r1_zero_reward_fn",
    "question_only_reward_fn",
    "math_reward_fn",
    "explain",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "Prompt",
    "load_prompt",
    "get_task",
    "tokenize_prompt_and_output",
    "SamplingConfig",
    "Completion",
    "generate",
    "log_generations",
    "evaluate_vllm",
    "R1ZeroGRPOConfig",
    "R1ZeroGRPOTrainer",
]


def test_public_names():
    assert trl_r1zero.__all__ == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_is_importable(name):
    assert getattr(trl_r1zero, name) is not None
    assert name in dir(trl_r1zero)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trl_r1zero' has no attribute 'masked_men'"):
        trl_r1zero.masked_men  # noqa: B018


@pytest.mark.parametrize("package", [name for name in LAYERS if name not in ("top", "data")])
def test_packages_export_what_they_say(package):
    module = importlib.import_module(f"trl_r1zero.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("name", [name for name in PUBLIC_NAMES if name != "__version__"])
def test_public_names_are_documented_and_typed(name):
    thing = getattr(trl_r1zero, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(
            parameter.annotation is not inspect.Parameter.empty
            for parameter in signature.parameters.values()
        )


# What R1ZeroGRPOTrainer relies on in TRL and transformers. If a test below fails after an upgrade,
# read the new version of what it names before changing the test.

OUR_CLASSES = [cls for cls in R1ZeroGRPOTrainer.__mro__ if cls.__module__.startswith("trl_r1zero.")]
THEIR_CLASSES = [cls for cls in R1ZeroGRPOTrainer.__mro__[:-1] if cls not in OUR_CLASSES]
OVERRIDDEN = {
    (GRPOTrainer, "training_step"): ["self", "model", "inputs", "num_items_in_batch"],
    (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
    (GRPOTrainer, "_get_train_sampler"): ["self", "dataset"],
    (Trainer, "evaluate"): ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "_determine_best_metric"): ["self", "metrics", "trial"],
    (Trainer, "train"): ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
}
CALLED = {
    (GRPOTrainer, "__init__"): [
        "self",
        "model",
        "reward_funcs",
        "args",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "reward_processing_classes",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
        "tools",
        "rollout_func",
        "environment_factory",
    ],
    (GRPOTrainer, "compute_loss"): [
        "self",
        "model",
        "inputs",
        "return_outputs",
        "num_items_in_batch",
    ],
    (GRPOTrainer, "_calculate_rewards"): [
        "self",
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ],
    (GRPOTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (GRPOTrainer, "log"): ["self", "logs", "start_time"],
    (Trainer, "save_model"): ["self", "output_dir", "_internal_call"],
    (Trainer, "pop_callback"): ["self", "callback"],
    (Trainer, "add_callback"): ["self", "callback"],
    (DistributedBackend, "summon_full_params"): ["self", "module", "kwargs"],
    (VLLMGeneration, "sync_weights"): ["self"],
    (VLLMGeneration, "generate"): ["self", "prompts", "images", "num_generations", "profiler"],
    (GradientState, "_set_sync_gradients"): ["self", "sync_gradients"],
}


def signature_id(key: object) -> str:
    return f"{key[0].__name__}.{key[1]}" if isinstance(key, tuple) else ""


@pytest.mark.parametrize(
    ("key", "parameters"), [*OVERRIDDEN.items(), *CALLED.items()], ids=signature_id
)
def test_contract_of_methods(key, parameters):
    owner, name = key
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize("key", OVERRIDDEN, ids=signature_id)
def test_contract_of_overrides(key):
    """What we override is ours in fact, and takes its arguments by the same names."""
    name = key[1]
    assert any(name in vars(cls) for cls in OUR_CLASSES)
    ours = list(inspect.signature(getattr(R1ZeroGRPOTrainer, name)).parameters)
    assert ours == OVERRIDDEN[key]


def test_contract_nothing_is_overridden_unawares():
    """A method that TRL's next version adds must not collide with one of ours."""
    inherited = set(dir(GRPOTrainer)) - set(dir(object))
    ours = {
        name
        for cls in OUR_CLASSES
        for name, value in vars(cls).items()
        if callable(value) or isinstance(value, property)
    }
    assert ours & inherited == {name for _, name in OVERRIDDEN}


def test_contract_of_functions():
    generation = inspect.signature(unwrap_model_for_generation).parameters
    assert list(generation) == [
        "model",
        "accelerator",
        "gather_deepspeed3_params",
        "generation_kwargs",
        "gradient_checkpointing_kwargs",
    ]
    assert list(inspect.signature(use_adapter).parameters) == ["model", "adapter_name"]
    assert list(inspect.signature(add_fused_lm_head).parameters) == [
        "model",
        "temperature",
        "cast_lm_head_to_fp32",
        "outputs",
    ]
    assert {"log_probs", "entropy"} <= {f.name for f in dataclasses.fields(FusedCausalLMOutput)}


def attributes_of_self(classes: list[type], context: type[ast.expr_context]) -> set[str]:
    """Names of `self.name` that the code of these classes reads (Load) or assigns (Store)."""
    return {
        node.attr
        for cls in classes
        for node in ast.walk(ast.parse(inspect.getsource(cls)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and isinstance(node.ctx, context)
    }


def provided(classes: list[type]) -> set[str]:
    """Attributes of `self` that these classes assign or define."""
    defined = {name for cls in classes for name in vars(cls)}
    return attributes_of_self(classes, ast.Store) | defined


def test_contract_of_attributes():
    """Every attribute of `self` that our trainer reads is its own or is set by TRL's classes."""
    read = attributes_of_self(OUR_CLASSES, ast.Load)
    inherited = read - (provided(OUR_CLASSES) - provided(THEIR_CLASSES))
    assert inherited >= {
        "_dist",
        "_metrics",
        "_pending_extra_logs",
        "_tokenizer",
        "beta",
        "eos_token_ids",
        "mask_truncated_completions",
        "ref_model",
        "reward_weights",
    }
    assert inherited <= provided(THEIR_CLASSES)


def test_contract_of_the_vllm_settings():
    """They are set anew before each call, so they must be what `generate` reads."""
    used = inspect.getsource(VLLMGeneration.generate)
    for name in ("temperature", "top_p", "top_k", "min_p", "max_completion_length"):
        assert f"{name} = self.{name}" in used
    assert '"generation_kwargs": self.generation_kwargs' in used


def test_contract_of_the_training_loop():
    # A process draws its whole share of a rollout batch at a time, from our sampler ...
    loader = inspect.getsource(GRPOTrainer.get_train_dataloader)
    assert "batch_size=self._train_batch_size * self.args.steps_per_generation" in loader
    assert "sampler_fn=self._get_train_sampler" in loader
    # ... the loss of a micro-batch is ours ...
    assert "return self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer.compute_loss)
    # ... rewards come back from all processes, and their parts through log_extra.
    rewards = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert "rewards_per_func = gather(rewards_per_func)" in rewards
    assert 'reward_kwargs["log_extra"] = self._log_completion_extra' in rewards
    extra = inspect.getsource(GRPOTrainer._log_completion_extra)
    assert "self._pending_extra_logs[column].extend(values)" in extra
    assert "training_bar" in inspect.getsource(ProgressCallback)


def test_contract_of_the_fused_head(tokenizer):
    """It takes shifted labels and gives the log-probabilities and entropies of the plain way."""
    model = make_tiny_model(tokenizer)
    ids = torch.randint(0, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(0))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    plain = get_response_log_probs(model, inputs, labels, True, temperature=0.7)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    fused = model(input_ids=inputs, shift_labels=labels, fused_lm_head=True)
    torch.testing.assert_close(fused.log_probs, plain["log_probs"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.entropy, plain["token_entropy"], atol=1e-5, rtol=1e-5)
