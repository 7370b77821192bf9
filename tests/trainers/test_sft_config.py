"""Settings of supervised fine-tuning and of expert iteration: defaults, checks, and what becomes of
every field of TRL's config."""

import dataclasses
from functools import partial

import config_checks
import pytest
import torch
from trl import SFTConfig

from trl_r1zero.trainers import ExpertIterationConfig, R1ZeroSFTConfig
from trl_r1zero.trainers.trl_fields import (
    EI_DERIVED_FIELDS,
    EI_UNSUPPORTED_FIELDS,
    SFT_DERIVED_FIELDS,
    SFT_UNSUPPORTED_FIELDS,
)

CONFIGS = (R1ZeroSFTConfig, ExpertIterationConfig)

# TRL's fields that mean here what they mean there.
SUPPORTED_FIELDS = {
    R1ZeroSFTConfig: {"max_length", "model_init_kwargs", "shuffle_dataset", "trust_remote_code"},
    ExpertIterationConfig: {"model_init_kwargs", "shuffle_dataset", "trust_remote_code"},
}

# A value other than the default for each field that cannot be set.
OTHER_UNSUPPORTED_IN_SFT = {
    **config_checks.OTHER_UNSUPPORTED,
    "chat_template_path": "some/template.jinja",
    "dataset_text_field": "trace",
    "dataset_num_proc": 4,
    "dataset_kwargs": {"skip_prepare_dataset": False},
    "ignore_data_skip": True,
    "dataloader_drop_last": True,
    "dataloader_num_workers": 2,
    "train_sampling_strategy": "sequential",
    "prediction_loss_only": True,
    "eos_token": "<|im_end|>",
    "pad_token": "<pad>",
    "truncation_mode": "keep_end",
    "packing": True,
    "packing_strategy": "wrapped",
    "padding_free": True,
    "eval_packing": False,
    "completion_only_loss": True,
    "assistant_only_loss": True,
    "loss_type": "dft",
    "activation_offloading": True,
}
OTHER = {
    R1ZeroSFTConfig: {**config_checks.OTHER_DERIVED, **OTHER_UNSUPPORTED_IN_SFT},
    ExpertIterationConfig: {
        **config_checks.OTHER_DERIVED,
        "num_train_epochs": 3,
        **OTHER_UNSUPPORTED_IN_SFT,
        "max_length": 2048,
        "overlong": "error",
        "append_eos": True,
        "eval_delay": 2,
    },
}


def name_of(value: object) -> str | None:
    return value.__name__ if isinstance(value, type) else None


def every(fields: str) -> list[tuple[type, str]]:
    return [(cls, name) for cls in CONFIGS for name in getattr(cls, fields)]


def values_of(args, names):
    return {name: getattr(args, name) for name in names}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a config of a class for one process, or for `processes` of them."""
    return lambda cls, *args, **settings: config_checks.make_config(
        cls, tmp_path, monkeypatch, *args, **settings
    )


@pytest.fixture
def sft(make):
    return partial(make, R1ZeroSFTConfig)


@pytest.fixture
def ei(make):
    return partial(make, ExpertIterationConfig)


@pytest.fixture(params=CONFIGS, ids=name_of)
def either(make, request):
    """For what both configs do alike."""
    return partial(make, request.param)


# Defaults

HANDOUT = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "train_batch_size": 32,
    "gradient_accumulation_steps": None,  # micro-batches of 2, or tokens
    "normalize_constant": 1.0,
    "shuffle_dataset": True,
    "min_tokens": 4,
    "eval_temperature": 1.0,
    "eval_top_p": 1.0,
}
HANDOUT_SFT = {
    **HANDOUT,
    "num_train_epochs": 1,
    "max_length": 1024,
    "overlong": "drop",
    "append_eos": False,
    "eval_max_completion_length": 1024,
    "eval_every": 16,
}
HANDOUT_EI = {
    **HANDOUT,
    "n_ei_steps": 5,
    "ei_batch_size": 512,
    "group_size": 8,
    "sft_epochs_per_step": 1,
    "max_per_question": None,
    "drop_duplicates": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "max_completion_length": 1024,
    "eval_every": 1,
    "save_every": 1,
}


def test_defaults_are_those_of_the_handout(sft, ei):
    assert values_of(sft(), HANDOUT_SFT) == HANDOUT_SFT
    assert values_of(ei(), HANDOUT_EI) == HANDOUT_EI
    for args in (sft(), ei()):
        assert args.validation_sampling().max_tokens == 1024
        assert "adamw" in args.optim
        assert args.eval_on_start
        assert args.gradient_checkpointing is False


def test_bf16_is_the_default_on_accelerators_only(either):
    assert either().bf16 == torch.cuda.is_available()
    assert either(use_cpu=True).bf16 is False
    assert either(use_cpu=True, bf16=True).bf16 is True


# What each field of TRL's config becomes


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_of_trl_is_classified(cls):
    config_checks.check_every_field_of_trl_is_classified(cls, SFTConfig, SUPPORTED_FIELDS[cls])


def test_the_configs_have_tables_of_their_own():
    assert R1ZeroSFTConfig.derived_fields is SFT_DERIVED_FIELDS
    assert R1ZeroSFTConfig.unsupported_fields is SFT_UNSUPPORTED_FIELDS
    assert ExpertIterationConfig.derived_fields is EI_DERIVED_FIELDS
    assert ExpertIterationConfig.unsupported_fields is EI_UNSUPPORTED_FIELDS


def test_the_lists_name_fields_of_trl_only():
    of_trl = config_checks.field_names(SFTConfig)
    assert {*SFT_DERIVED_FIELDS, *SFT_UNSUPPORTED_FIELDS} <= of_trl
    # Fields of fine-tuning on traces that expert iteration has no use for.
    beyond = {*EI_DERIVED_FIELDS, *EI_UNSUPPORTED_FIELDS} - of_trl
    assert beyond == {"overlong", "append_eos"} <= config_checks.field_names(R1ZeroSFTConfig)


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_derived_field_names_settings_that_exist(cls):
    config_checks.check_every_derived_field_names_settings_that_exist(cls)


@pytest.mark.parametrize("cls", CONFIGS)
def test_the_examples_are_complete(cls):
    assert set(OTHER[cls]) == {*cls.derived_fields, *cls.unsupported_fields}


@pytest.mark.parametrize(("cls", "name"), every("derived_fields"), ids=name_of)
def test_a_derived_field_cannot_be_set(make, cls, name):
    config_checks.check_a_derived_field_cannot_be_set(partial(make, cls), name, OTHER[cls][name])


@pytest.mark.parametrize(("cls", "name"), every("unsupported_fields"), ids=name_of)
def test_an_unsupported_field_cannot_be_set(make, cls, name):
    config_checks.check_an_unsupported_field_cannot_be_set(
        partial(make, cls), name, OTHER[cls][name]
    )


# Batches


@pytest.mark.parametrize(
    ("processes", "share"),
    # 32 rows / (16 cuts x 2 processes) = 1 row.
    [(1, 32), (2, 16)],
)
def test_a_process_gets_whole_micro_batches(either, processes, share):
    args = either(processes, gradient_accumulation_steps=16)
    assert args.rows_per_microbatch == share // 16
    assert args.train_batch_share == share
    assert args.per_device_train_batch_size == share
    assert args.train_batch_size == 32


@pytest.mark.parametrize(
    ("processes", "settings", "message"),
    [
        (
            1,
            {"train_batch_size": 40, "gradient_accumulation_steps": 16},
            r"^train_batch_size \(40\) must be divisible by gradient_accumulation_steps \(16\); "
            "set gradient_accumulation_steps to 10",
        ),
        (
            1,
            {"train_batch_size": 8, "gradient_accumulation_steps": 16},
            r"^train_batch_size \(8\) must be divisible by gradient_accumulation_steps \(16\); "
            "set gradient_accumulation_steps to 8",
        ),
        (
            3,
            {},
            r"^3 processes cannot share train_batch_size \(32\) rows evenly; .* changes the "
            r"algorithm \(train_batch_size 30 can be shared\)",
        ),
        (
            4,
            {"gradient_accumulation_steps": 16},
            r"^train_batch_size \(32\) must be divisible by gradient_accumulation_steps x 4 "
            r"processes \(64\); set gradient_accumulation_steps to 8, or leave it unset$",
        ),
    ],
)
def test_batch_geometry(either, processes, settings, message):
    with pytest.raises(ValueError, match=message):
        either(processes, **settings)


@pytest.mark.parametrize("cls", CONFIGS)
def test_a_process_that_is_alone_among_several_is_an_error(make, cls, monkeypatch):
    config_checks.check_a_process_that_is_alone_among_several_is_an_error(
        cls, partial(make, cls), monkeypatch
    )


@pytest.mark.parametrize(
    "name",
    [
        "train_batch_size",
        "gradient_accumulation_steps",
        "eval_every",
        "num_eval_examples",
        "eval_max_completion_length",
        "save_every",
    ],
)
def test_counts_are_at_least_1(either, name):
    config_checks.check_at_least_1(either, name)


def test_max_length_is_at_least_1(sft):
    config_checks.check_at_least_1(sft, "max_length")


@pytest.mark.parametrize(
    "name",
    [
        "n_ei_steps",
        "ei_batch_size",
        "group_size",
        "sft_epochs_per_step",
        "max_per_question",
        "save_every_updates",
        "num_rollouts_to_log",
    ],
)
def test_counts_of_expert_iteration_are_at_least_1(ei, name):
    config_checks.check_at_least_1(ei, name)


# Other checks


@pytest.mark.parametrize("constant", [0, -1.0, float("nan")])
def test_the_divisor_of_the_loss_is_above_0(either, constant):
    with pytest.raises(ValueError, match=f"^normalize_constant must be above 0, got {constant}"):
        either(normalize_constant=constant)
    assert either(normalize_constant=0.5).normalize_constant == 0.5


def test_overlong(sft):
    assert sft(overlong="error").overlong == "error"
    with pytest.raises(ValueError, match=r"^overlong must be one of drop, error, got 'truncate'"):
        sft(overlong="truncate")


def test_max_length_may_be_without_limit(sft):
    assert sft(max_length=None).max_length is None


@pytest.mark.parametrize("epochs", [0, 0.5, 1.5, -1])
def test_epochs_are_whole(sft, epochs):
    with pytest.raises(
        ValueError, match=rf"^num_train_epochs must be 1, 2, 3 \.\.\., got {epochs}"
    ):
        sft(num_train_epochs=epochs)


@pytest.mark.parametrize("epochs", [1, 2.0])
def test_epochs_that_are_whole(sft, epochs):
    args = sft(num_train_epochs=epochs)
    assert args.num_train_epochs == epochs
    assert args.max_steps == -1  # the trainer knows, once it has the rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tokens": 1025}, r"min_tokens .* eval_max_completion_length \(1024\), got 1025"),
        ({"min_tokens": -1}, r"min_tokens .* eval_max_completion_length \(1024\), got -1"),
        (
            {"eval_max_completion_length": 4, "min_tokens": 5},
            r"min_tokens must be between 0 and eval_max_completion_length \(4\), got 5",
        ),
        ({"eval_max_completion_length": None}, "must be a number of tokens, got None"),
        ({"eval_max_completion_length": 0}, "must be at least 1, got 0"),
    ],
)
def test_min_tokens_of_sft(sft, settings, message):
    with pytest.raises(ValueError, match=r"^(eval_max_completion_length |)" + message):
        sft(**settings)
    short = sft(eval_max_completion_length=2)  # nobody has set min_tokens, so nothing is wrong
    assert short.validation_sampling().min_tokens == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tokens": 1025}, r"max_completion_length \(1024\), got 1025"),
        ({"min_tokens": -1}, r"max_completion_length \(1024\), got -1"),
        (
            {"max_completion_length": 4, "min_tokens": 5},
            r"max_completion_length \(4\), got 5",
        ),
        (
            {"eval_max_completion_length": 4, "min_tokens": 5},
            r"eval_max_completion_length \(4\), got 5",
        ),
    ],
)
def test_min_tokens_of_expert_iteration(ei, settings, message):
    with pytest.raises(ValueError, match=r"^min_tokens must be between 0 and " + message):
        ei(**settings)
    short = ei(max_completion_length=2, eval_max_completion_length=3)
    assert short.rollout_sampling().min_tokens == 2
    assert short.validation_sampling().min_tokens == 3


def test_the_limits_of_lengths_can_be_reached(sft, ei):
    assert sft(min_tokens=7, eval_max_completion_length=7).validation_sampling().max_tokens == 7
    assert ei(min_tokens=0, max_completion_length=5).validation_sampling().max_tokens == 5
    args = ei(min_tokens=5, max_completion_length=9, eval_max_completion_length=5)
    assert args.validation_sampling().max_tokens == 5


@pytest.mark.parametrize("temperature", [0, -0.5])
def test_expert_iteration_has_to_explore(ei, temperature):
    with pytest.raises(
        ValueError, match=f"^temperature must be above 0 to explore, got {temperature}"
    ):
        ei(temperature=temperature)
    assert ei(eval_temperature=0.0).eval_temperature == 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_a_schedule_of_expert_iteration_knows_no_end(sft, ei, schedule):
    with pytest.raises(
        ValueError,
        match=rf"^lr_scheduler_type must be one of constant, constant_with_warmup, got '{schedule}'"
        r": the number of updates is not known beforehand, as it depends on how many rollouts",
    ):
        ei(lr_scheduler_type=schedule)
    assert sft(lr_scheduler_type=schedule).lr_scheduler_type == schedule


def test_expert_iteration_may_warm_up(ei):
    args = ei(lr_scheduler_type="constant_with_warmup", warmup_steps=4)
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert args.get_warmup_steps(args.max_steps) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_server": {}}, "set use_vllm to true, or vllm_server to null"),
        ({"use_vllm": True, "vllm_server": {"gpus": 1}}, "gpus"),
        ({"vllm_check_syncs": -1}, "vllm_check_syncs must be at least 0, got -1"),
        ({"vllm_request_timeout": 0}, "vllm_request_timeout must be above 0, got 0"),
    ],
)
def test_settings_of_a_server_that_cannot_work(either, settings, message):
    with pytest.raises(ValueError, match=message):
        either(**settings)


# Derived values


@pytest.mark.parametrize("processes", [1, 2])
def test_derived_values_of_sft(sft, processes):
    args = sft(processes, eval_every=8, save_every=25)
    assert (args.eval_strategy, args.eval_steps, args.do_eval) == ("steps", 8, True)
    assert (args.save_strategy, args.save_steps) == ("steps", 25)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_accuracy", True)
    assert args.load_best_model_at_end is False
    assert args.max_steps == -1


def test_no_validation_and_no_checkpoints(either):
    args = either(eval_every=None, save_every=None)
    assert (args.eval_strategy, args.save_strategy) == ("no", "no")
    assert args.do_eval is False
    assert args.metric_for_best_model is None


@pytest.mark.parametrize("processes", [1, 2])
def test_derived_values_of_expert_iteration(ei, processes):
    """Validation and checkpoints come at the ends of EI steps, which transformers does not know."""
    args = ei(processes, eval_every=2, save_every=3, save_every_updates=7)
    assert (args.eval_strategy, args.eval_steps, args.do_eval) == ("no", None, True)
    assert args.save_strategy == "no"
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_accuracy", True)
    assert args.num_train_epochs == 1.0
    assert args.max_steps == args.max_updates


# EI steps, questions, G, epochs and rows per update -> updates if every rollout is correct.
@pytest.mark.parametrize(
    ("n_ei_steps", "ei_batch_size", "group_size", "epochs", "train_batch_size", "max_updates"),
    [
        (5, 512, 8, 1, 32, 640),  # 5 x 4096 / 32
        (5, 512, 8, 2, 32, 1280),
        (5, 2048, 16, 1, 32, 5120),  # 5 x 32768 / 32
        (2, 10, 3, 2, 8, 16),  # 30 rows are 3.75 batches, so 4 in each of 4 epochs
        (1, 1, 1, 1, 32, 1),
        (3, 4, 8, 1, 32, 3),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_updates_at_most(
    ei,
    n_ei_steps,
    ei_batch_size,
    group_size,
    epochs,
    train_batch_size,
    max_updates,
    processes,
):
    args = ei(
        processes,
        n_ei_steps=n_ei_steps,
        ei_batch_size=ei_batch_size,
        group_size=group_size,
        sft_epochs_per_step=epochs,
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=2,
    )
    assert args.max_updates == max_updates
    assert args.max_steps == max_updates


def test_updates_at_most_with_a_cap_per_question(ei):
    """512 questions with at most 2 of 8 rollouts each are 1,024 rows: 32 updates in each step."""
    assert ei(max_per_question=2).max_updates == 5 * 32
    assert ei(max_per_question=20).max_updates == ei().max_updates == 640


def test_a_share_of_the_updates_cannot_warm_up_expert_iteration(sft, ei):
    with pytest.raises(ValueError, match=r"^warmup_steps must be a number of updates, got 0\.1"):
        ei(warmup_steps=0.1)
    assert ei(warmup_steps=3).warmup_steps == 3
    assert sft(warmup_steps=0.1).warmup_steps == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_temperature": -1.0}, "temperature must be at least 0"),
        ({"eval_top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
    ],
)
def test_sampling_that_cannot_work_is_an_error_at_once(either, settings, message):
    with pytest.raises(ValueError, match=message):
        either(**settings)


def test_what_cannot_work_in_one_of_the_two(sft, ei):
    with pytest.raises(ValueError, match="eval_max_completion_length must be a number of tokens"):
        sft(min_tokens=0, eval_max_completion_length=None)
    with pytest.raises(ValueError, match=r"num_train_epochs must be 1, 2, 3 ..., got inf"):
        sft(num_train_epochs=float("inf"))
    with pytest.raises(ValueError, match="top_k must be at least 0"):
        ei(top_k=-1)
    with pytest.raises(ValueError, match="temperature must be above 0 to explore, got nan"):
        ei(temperature=float("nan"))


# dataclasses.replace


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rate": 1e-6},
        {"train_batch_size": 64, "gradient_accumulation_steps": 8},
        {"normalize_constant": 25.0},
        {"eval_every": None, "save_every": 5},
        {"min_tokens": 0, "eval_max_completion_length": 64},
    ],
)
def test_replace(either, changes):
    config_checks.check_replace(either, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 3},
        {"max_length": None, "overlong": "error", "append_eos": True},
        {"lr_scheduler_type": "cosine"},
    ],
)
def test_replace_in_sft(sft, changes):
    config_checks.check_replace(sft, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_ei_steps": 2},
        {"ei_batch_size": 1024, "group_size": 4},
        {"sft_epochs_per_step": 2, "max_per_question": 4},
        {"lr_scheduler_type": "constant_with_warmup"},
        {"eval_every": 2, "save_every_updates": 10},
    ],
)
def test_replace_in_expert_iteration(ei, changes):
    config_checks.check_replace(ei, changes)


def test_replace_derives_anew(ei):
    args = dataclasses.replace(ei(), ei_batch_size=1024)
    assert args.max_steps == 1280


def test_replace_cannot_set_derived_fields(either):
    config_checks.check_replace_cannot_set_derived_fields(either)


def test_a_value_that_others_derived_cannot_be_set_alone(sft, ei):
    """Only all of them at once are what `replace` hands back in."""
    assert ei().num_train_epochs == 1.0
    with pytest.raises(ValueError, match="num_train_epochs follows from another setting"):
        ei(num_train_epochs=1.0)
    with pytest.raises(ValueError, match="max_steps follows from another setting"):
        sft(max_steps=sft().max_steps)
