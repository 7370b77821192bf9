"""The methods and attributes of TRL and transformers that our trainers rely on.

If a test here fails after an upgrade, read the new version of what it names before changing the
test.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterable

import pytest
from accelerate import Accelerator
from accelerate.state import GradientState
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from trl.distributed import DistributedBackend
from trl.generation import vllm_client, vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, use_adapter

from trl_r1zero.trainers import (
    ExpertIterationTrainer,
    R1ZeroDPOTrainer,
    R1ZeroGRPOTrainer,
    R1ZeroSFTTrainer,
    trl_compat,
)

TRAINERS = (R1ZeroGRPOTrainer, R1ZeroSFTTrainer, ExpertIterationTrainer, R1ZeroDPOTrainer)
BASES = {
    R1ZeroGRPOTrainer: GRPOTrainer,
    R1ZeroSFTTrainer: SFTTrainer,
    ExpertIterationTrainer: SFTTrainer,
    R1ZeroDPOTrainer: DPOTrainer,
}

# What every trainer overrides, and what each one does besides.
OVERRIDDEN_BY_ALL = {
    (_BaseTrainer, "create_model_card"): ["self", "model_name", "dataset_name", "tags"],
    (Trainer, "_determine_best_metric"): ["self", "metrics", "trial"],
    (Trainer, "train"): ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
}
EVALUATE = ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]
TRAINING_STEP = ["self", "model", "inputs", "num_items_in_batch"]
COMPUTE_LOSS = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
OVERRIDDEN_IN_SFT = {
    **OVERRIDDEN_BY_ALL,
    (SFTTrainer, "evaluate"): EVALUATE,
    (Trainer, "training_step"): TRAINING_STEP,
    (SFTTrainer, "compute_loss"): COMPUTE_LOSS,
    (Trainer, "get_train_dataloader"): ["self"],
}
OVERRIDDEN = {
    R1ZeroGRPOTrainer: {
        **OVERRIDDEN_BY_ALL,
        (Trainer, "evaluate"): EVALUATE,
        (GRPOTrainer, "training_step"): TRAINING_STEP,
        (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
        (GRPOTrainer, "_get_train_sampler"): ["self", "dataset"],
        (GRPOTrainer, "_save_checkpoint"): ["self", "model", "trial"],
    },
    R1ZeroSFTTrainer: OVERRIDDEN_IN_SFT,
    ExpertIterationTrainer: OVERRIDDEN_IN_SFT,
    R1ZeroDPOTrainer: {
        **OVERRIDDEN_BY_ALL,
        (DPOTrainer, "evaluate"): EVALUATE,
        (Trainer, "training_step"): TRAINING_STEP,
        (DPOTrainer, "compute_loss"): COMPUTE_LOSS,
        (Trainer, "get_train_dataloader"): ["self"],
        (DPOTrainer, "_prepare_dataset"): [
            "self",
            "dataset",
            "processing_class",
            "args",
            "dataset_name",
        ],
        (DPOTrainer, "compute_ref_log_probs"): ["self", "model", "inputs"],
    },
}
# Attributes that theirs assign and ours assign anew, on purpose.
ASSIGNED_ANEW = {"control"}

CALLED_BY_ALL = {
    (Trainer, "save_model"): ["self", "output_dir", "_internal_call"],
    (Trainer, "pop_callback"): ["self", "callback"],
    (Trainer, "add_callback"): ["self", "callback"],
    (Trainer, "log"): ["self", "logs", "start_time"],
    (CallbackHandler, "on_evaluate"): ["self", "args", "state", "control", "metrics", "kwargs"],
    (Accelerator, "no_sync"): ["self", "model"],
}
CALLED_WHEN_SAMPLING = {
    **CALLED_BY_ALL,
    (DistributedBackend, "__init__"): ["self", "accelerator"],
    (DistributedBackend, "summon_full_params"): ["self", "module", "kwargs"],
}
CALLED_IN_SFT = {
    **CALLED_WHEN_SAMPLING,
    (SFTTrainer, "__init__"): [
        "self",
        "model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "compute_loss_func",
        "compute_metrics",
        "callbacks",
        "optimizers",
        "optimizer_cls_and_kwargs",
        "preprocess_logits_for_metrics",
        "quantization_config",
        "peft_config",
        "formatting_func",
    ],
    (SFTTrainer, "log"): ["self", "logs", "start_time"],
}
CALLED = {
    R1ZeroGRPOTrainer: {
        **CALLED_WHEN_SAMPLING,
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
        (GRPOTrainer, "compute_loss"): COMPUTE_LOSS,
        (GRPOTrainer, "log"): ["self", "logs", "start_time"],
    },
    R1ZeroSFTTrainer: CALLED_IN_SFT,
    ExpertIterationTrainer: {
        **CALLED_IN_SFT,
        (TrainerCallback, "on_step_end"): ["self", "args", "state", "control", "kwargs"],
    },
    R1ZeroDPOTrainer: {
        **CALLED_BY_ALL,
        (DPOTrainer, "__init__"): [
            "self",
            "model",
            "ref_model",
            "args",
            "data_collator",
            "train_dataset",
            "eval_dataset",
            "processing_class",
            "compute_metrics",
            "callbacks",
            "optimizers",
            "quantization_config",
            "peft_config",
        ],
        (DPOTrainer, "log"): ["self", "logs", "start_time"],
        (DPOTrainer, "_precompute_ref_logps"): ["self", "dataset", "name", "batch_size"],
    },
}
# What trl_compat calls and reads, of which trainers.
CALLED_BY_COMPAT = {
    (Trainer, "_save_checkpoint"): ["self", "model", "trial"],
    (GRPOTrainer, "_calculate_rewards"): [
        "self",
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ],
    (GradientState, "_set_sync_gradients"): ["self", "sync_gradients"],
    (VLLMGeneration, "_init_vllm"): ["self"],
    (VLLMGeneration, "_iter_named_params"): ["self"],
}
READ_BY_COMPAT = {
    "_metrics": TRAINERS,
    "_tokenizer": TRAINERS,
    "_train_batch_size": TRAINERS,
    "_pending_extra_logs": (R1ZeroGRPOTrainer,),
    "_pending_metrics": (R1ZeroGRPOTrainer,),
}
SIGNATURES = {
    key: names for part in (OVERRIDDEN, CALLED) for t in TRAINERS for key, names in part[t].items()
} | CALLED_BY_COMPAT
# Attributes that all trainers have from theirs, among others.
INHERITED = {"accelerator", "callback_handler", "model_wrapped"}


def our_classes(trainer: type) -> list[type]:
    return [cls for cls in trainer.__mro__ if cls.__module__.startswith("trl_r1zero.")]


def their_classes(trainer: type) -> list[type]:
    """TRL's trainer first, then its bases."""
    return [cls for cls in trainer.__mro__[:-1] if cls not in our_classes(trainer)]


def parameters_of(owner: type, name: str) -> list[str]:
    return list(inspect.signature(getattr(owner, name)).parameters)


def name_of(value: object) -> str:
    if isinstance(value, tuple):
        return f"{value[0].__name__}.{value[1]}"
    return value.__name__ if isinstance(value, type) else ""


def attributes_of_self(classes: Iterable[type], context: type[ast.expr_context]) -> set[str]:
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


def called_by(classes: Iterable[type]) -> set[str]:
    """Names of `self.name(...)` and `super().name(...)` in the code of these classes."""
    functions = [
        node.func
        for cls in classes
        for node in ast.walk(ast.parse(inspect.getsource(cls)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return {
        function.attr
        for function in functions
        if ast.unparse(function.value) in ("self", "super()")
    }


def provided(classes: Iterable[type]) -> set[str]:
    """Attributes of `self` that these classes assign or define."""
    classes = list(classes)
    defined = {name for cls in classes for name in vars(cls)}
    return attributes_of_self(classes, ast.Store) | defined


# Methods and attributes


@pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)
def test_our_trainers_come_before_theirs(trainer):
    ours = our_classes(trainer)
    assert list(trainer.__mro__[: len(ours)]) == ours
    assert their_classes(trainer)[0] is BASES[trainer]


@pytest.mark.parametrize(("key", "parameters"), SIGNATURES.items(), ids=name_of)
def test_contract_of_methods(key, parameters):
    assert parameters_of(*key) == parameters


@pytest.mark.parametrize(
    ("trainer", "key"), [(t, key) for t in TRAINERS for key in OVERRIDDEN[t]], ids=name_of
)
def test_contract_of_overrides(trainer, key):
    """What we override is ours in fact, and takes its arguments by the same names."""
    owner, name = key
    assert any(name in vars(cls) for cls in our_classes(trainer))
    assert parameters_of(trainer, name) == OVERRIDDEN[trainer][key]
    # Nothing between ours and the owner's but what passes all arguments on.
    theirs = their_classes(trainer)
    for cls in theirs[: theirs.index(owner)]:
        assert name not in vars(cls) or parameters_of(cls, name) == ["self", "args", "kwargs"]


@pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)
def test_contract_nothing_is_overridden_unawares(trainer):
    """A method that TRL's next version adds must not collide with one of ours."""
    inherited = set(dir(their_classes(trainer)[0])) - set(dir(object))
    ours = {
        name
        for cls in our_classes(trainer)
        for name, value in vars(cls).items()
        if callable(value) or isinstance(value, property)
    }
    assert ours & inherited == {name for _, name in OVERRIDDEN[trainer]}


@pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)
def test_contract_nothing_is_assigned_unawares(trainer):
    """Nor an attribute that it sets, in `__init__` say, with one that ours set."""
    methods = {name for _, name in OVERRIDDEN[trainer]}
    ours = {name for name in provided(our_classes(trainer)) if not name.startswith("__")}
    assert ours & provided(their_classes(trainer)) - methods == ASSIGNED_ANEW


@pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)
def test_contract_of_attributes(trainer):
    """Every attribute of `self` that our trainers read is their own or is set by TRL's classes."""
    ours, theirs = our_classes(trainer), their_classes(trainer)
    read = attributes_of_self(ours, ast.Load)
    inherited = read - (provided(ours) - provided(theirs))
    assert INHERITED <= inherited <= provided(theirs)
    # Private ones are what ours override; all others are in trl_compat.
    private = {name for name in inherited if name.startswith("_")}
    assert private <= {name for _, name in OVERRIDDEN[trainer]}


def test_contract_of_what_trl_compat_reads():
    """Every private name in it is listed above, and TRL's trainers have the attributes."""
    read = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(trl_compat)))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    }
    assert read - {"_weights", "_fingerprint"} == READ_BY_COMPAT.keys() | {
        name for _, name in CALLED_BY_COMPAT if name != "_init_vllm"
    }
    for name, trainers in READ_BY_COMPAT.items():
        assert all(name in provided(their_classes(trainer)) for trainer in trainers)
    assert Dataset.from_dict({"a": [1]})._fingerprint != Dataset.from_dict({"a": [2]})._fingerprint
    # The weight of each reward, and the reference model, are public.
    assert {"reward_weights", "ref_model"} <= provided(their_classes(R1ZeroGRPOTrainer))
    assert "ref_model" in provided(their_classes(R1ZeroDPOTrainer))
    # Where TRL asks whether vLLM is there, at its import and before it is used.
    for module in (vllm_generation, vllm_client):
        assert "from ..import_utils import" in inspect.getsource(module)
        assert "\nif is_vllm_available():" in inspect.getsource(module)
    assert "if not is_vllm_available():" in inspect.getsource(VLLMGeneration._init_vllm)


@pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)
def test_contract_every_call_of_theirs_is_listed(trainer):
    methods = {name for cls in their_classes(trainer) for name in vars(cls)}
    of_theirs = called_by(our_classes(trainer)) & methods
    listed = {name for _, name in (*CALLED[trainer], *OVERRIDDEN[trainer])}
    assert {"__init__", "add_callback", "save_model", "train"} <= of_theirs <= listed


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


def test_contract_of_the_weights_for_a_server():
    """Of TRL's class for vLLM the engine is replaced by none, and nothing else."""
    ours = {name for name in vars(trl_compat._WithoutEngine) if not name.startswith("__")}
    assert ours & set(dir(VLLMGeneration)) == {"_init_vllm"}
    assert "self._init_vllm()" in inspect.getsource(VLLMGeneration.__init__)
    settings = inspect.signature(VLLMGeneration.__init__).parameters
    assert list(settings)[1:5] == ["model", "accelerator", "processing_class", "mode"]
