"""Settings of a GRPO run: defaults, checks, and what becomes of every field of TRL's config."""

import dataclasses
from functools import partial

import config_checks
import pytest
import torch
from trl import GRPOConfig

from trl_r1zero.functional import AGGREGATIONS, LOSS_TYPES, SAMPLER_CORRECTIONS
from trl_r1zero.trainers import R1ZeroGRPOConfig
from trl_r1zero.trainers.memory_limits import microbatch_limits
from trl_r1zero.trainers.trl_fields import DERIVED_FIELDS, UNSUPPORTED_FIELDS

# TRL's fields that mean here what they mean there (or, loss_type, have our values instead).
SUPPORTED_FIELDS = {
    "beta",
    "cast_lm_head_to_fp32",
    "delta",
    "disable_dropout",
    "ds3_gather_for_generation",
    "entropy_coef",
    "loss_type",
    "mask_truncated_completions",
    "max_completion_length",
    "min_p",
    "model_init_kwargs",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "reward_weights",
    "shuffle_dataset",
    "sync_ref_model",
    "temperature",
    "top_k",
    "top_p",
    "trust_remote_code",
    "use_bias_correction_kl",
    "use_vllm",
    "vllm_group_port",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_mode",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_structured_outputs_regex",
}

# A value other than the default for each field that cannot be set.
OTHER_DERIVED = {
    **config_checks.OTHER_DERIVED,
    "num_generations": 4,
    "generation_batch_size": 64,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "num_train_epochs": 3.0,
    "scale_rewards": "batch",
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "importance_sampling_level": "sequence",
    "num_generations_eval": 8,
    "log_completions": True,
    "num_completions_to_print": 3,
}
OTHER_UNSUPPORTED = {
    **config_checks.OTHER_UNSUPPORTED,
    "sapo_temperature_neg": 2.0,
    "sapo_temperature_pos": 2.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
    "top_entropy_quantile": 0.2,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.1,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.1,
    "entropy_target": 0.5,
    "off_policy_mask_threshold": 0.5,
    "multi_objective_aggregation": "normalize_then_sum",
    "vllm_importance_sampling_cap": 2.0,
    "vllm_tensor_parallel_size": 2,
    "vllm_gpu_memory_utilization": 0.5,
    "vllm_max_model_length": 2048,
    "vllm_enable_sleep_mode": True,
    "vllm_model_impl": "transformers",
    "repetition_penalty": 1.1,
    "generation_kwargs": {"stop": ["x"]},
    "cache_implementation": "static",
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"max_memory_percent": 0.5},
    "use_transformers_paged": True,
    "max_tool_calling_iterations": 2,
    "log_completions_hub_repo": "somebody/completions",
    "log_multimodal": False,
    "log_unique_prompts": True,
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Makes a config for one process, or for `processes` of them."""

    return partial(config_checks.make_config, R1ZeroGRPOConfig, tmp_path, monkeypatch)


# Defaults


def test_defaults_are_those_of_the_handout(config):
    args = config()
    assert {
        name: getattr(args, name)
        for name in (
            "n_grpo_steps",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "adam_beta1",
            "adam_beta2",
            "weight_decay",
            "advantage_eps",
            "rollout_batch_size",
            "group_size",
            "temperature",
            "top_p",
            "top_k",
            "min_tokens",
            "max_completion_length",
            "epochs_per_rollout_batch",
            "train_batch_size",
            "max_grad_norm",
            "loss_type",
            "aggregation",
            "beta",
        )
    } == {
        "n_grpo_steps": 200,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "advantage_eps": 1e-6,
        "rollout_batch_size": 256,
        "group_size": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_tokens": 4,
        "max_completion_length": 1024,
        "epochs_per_rollout_batch": 1,
        "train_batch_size": 256,
        "max_grad_norm": 1.0,
        "loss_type": "reinforce_with_baseline",
        "aggregation": "masked_mean",
        "beta": 0.0,
    }
    assert "adamw" in args.optim
    assert args.advantage == "group_mean_std"
    assert args.rows_per_microbatch is None  # the handout's micro-batches of 2, or tokens
    assert microbatch_limits(args.rows_per_microbatch, None, None, packed=False).rows == 2
    assert args.updates_per_grpo_step == 1  # on-policy
    assert 5 <= args.eval_every <= 10
    assert args.eval_on_start


def test_bf16_is_the_default_on_accelerators_only(config):
    assert config().bf16 == torch.cuda.is_available()
    assert config(use_cpu=True).bf16 is False
    assert config(use_cpu=True, bf16=True).bf16 is True


# What each field of TRL's config becomes


def test_every_field_of_trl_is_classified():
    config_checks.check_every_field_of_trl_is_classified(
        R1ZeroGRPOConfig, GRPOConfig, SUPPORTED_FIELDS
    )


def test_the_lists_name_fields_of_trl_only():
    assert set(DERIVED_FIELDS) <= config_checks.field_names(GRPOConfig)
    assert set(UNSUPPORTED_FIELDS) <= config_checks.field_names(GRPOConfig)


def test_every_derived_field_names_settings_that_exist():
    config_checks.check_every_derived_field_names_settings_that_exist(R1ZeroGRPOConfig)


def test_the_examples_are_complete():
    assert set(OTHER_DERIVED) == set(DERIVED_FIELDS)
    assert set(OTHER_UNSUPPORTED) == set(UNSUPPORTED_FIELDS)


@pytest.mark.parametrize("name", DERIVED_FIELDS)
def test_a_derived_field_cannot_be_set(config, name):
    config_checks.check_a_derived_field_cannot_be_set(config, name, OTHER_DERIVED[name])


@pytest.mark.parametrize("name", UNSUPPORTED_FIELDS)
def test_an_unsupported_field_cannot_be_set(config, name):
    config_checks.check_an_unsupported_field_cannot_be_set(config, name, OTHER_UNSUPPORTED[name])


def test_vllm_only_as_a_server(config):
    with pytest.raises(ValueError, match="vllm_mode must be 'server', got 'colocate'"):
        config(use_vllm=True, vllm_mode="colocate")


# Names


@pytest.mark.parametrize(
    ("trl_name", "settings"),
    {
        "grpo": ("grpo_clip", "use_std_normalization: true", "masked_mean"),
        "bnpo": ("grpo_clip", "use_std_normalization: true", "token_mean"),
        "dapo": ("grpo_clip", "use_std_normalization: true", "token_mean"),
        "dr_grpo": ("grpo_clip", "use_std_normalization: false", "masked_normalize"),
    }.items(),
)
def test_names_of_trl_are_answered_with_the_three_settings(config, trl_name, settings):
    with pytest.raises(ValueError, match=f"loss_type '{trl_name}' is TRL's name") as error:
        config(loss_type=trl_name)
    loss_type, std, aggregation = settings
    assert f"loss_type: {loss_type}" in str(error.value)
    assert std in str(error.value)
    assert f"aggregation: {aggregation}" in str(error.value)


@pytest.mark.parametrize("trl_name", ["sapo", "luspo", "vespo"])
def test_names_of_trl_without_a_counterpart(config, trl_name):
    with pytest.raises(ValueError, match=f"'{trl_name}' is TRL's name .* none here: its"):
        config(loss_type=trl_name)


def test_an_unknown_name_is_answered_with_the_nearest(config):
    with pytest.raises(ValueError, match="'grpo_clipp'; did you mean 'grpo_clip'") as error:
        config(loss_type="grpo_clipp")
    assert all(name in str(error.value) for name in LOSS_TYPES)
    with pytest.raises(ValueError, match="got 'mask_mean'; did you mean 'masked_mean'") as error:
        config(aggregation="mask_mean")
    assert all(name in str(error.value) for name in AGGREGATIONS)


# The three axes


@pytest.mark.parametrize(
    ("loss_type", "use_std", "advantage", "scale_rewards"),
    [
        ("no_baseline", None, "raw", "none"),
        ("no_baseline", False, "raw", "none"),
        ("reinforce_with_baseline", None, "group_mean_std", "group"),
        ("reinforce_with_baseline", False, "group_mean", "none"),
        ("grpo_clip", True, "group_mean_std", "group"),
        ("grpo_clip", False, "group_mean", "none"),
        ("grpo_no_clip", None, "group_mean_std", "group"),
    ],
)
def test_advantage(config, loss_type, use_std, advantage, scale_rewards):
    args = config(loss_type=loss_type, use_std_normalization=use_std)
    assert args.advantage == advantage
    assert args.scale_rewards == scale_rewards


def test_std_normalization_needs_a_baseline(config):
    with pytest.raises(ValueError, match="no baseline to normalise"):
        config(loss_type="no_baseline", use_std_normalization=True)


def test_clip_bounds(config):
    assert config().clip_bounds == 0.2
    assert config(loss_type="grpo_clip", cliprange=0.1).clip_bounds == 0.1
    both = config(loss_type="grpo_clip", cliprange_high=0.28)
    assert both.clip_bounds == (0.2, 0.28)
    assert (both.epsilon, both.epsilon_high) == (0.2, 0.28)
    with pytest.raises(ValueError, match="cliprange_high is used by grpo_clip only"):
        config(cliprange_high=0.28)


@pytest.mark.parametrize("name", ["cliprange", "cliprange_high", "advantage_eps"])
def test_ranges(config, name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -0.1"):
        config(loss_type="grpo_clip", **{name: -0.1})


def test_sequence_divisor(config):
    assert config().sequence_divisor is None
    assert config(aggregation="token_mean").sequence_divisor is None
    # masked_normalize: max_completion_length unless another constant is given
    args = config(aggregation="masked_normalize", max_completion_length=512)
    assert args.sequence_divisor == 512.0
    assert config(aggregation="masked_normalize", normalize_constant=7.0).sequence_divisor == 7.0
    # constant: for all sequences of the train batch together
    args = config(aggregation="constant", max_completion_length=512, train_batch_size=64)
    assert args.sequence_divisor == 512.0 * 64
    assert config(aggregation="constant", normalize_constant=7.0).sequence_divisor == 7.0
    with pytest.raises(ValueError, match=r"normalize_constant is used by .* masked_normalize only"):
        config(normalize_constant=7.0)
    with pytest.raises(ValueError, match="normalize_constant must be above 0, got 0"):
        config(aggregation="masked_normalize", normalize_constant=0)


# The correction for the sampler


def correction(**settings):
    """Settings of a run with the correction: short names get TRL's prefix."""
    return {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        **{f"vllm_importance_sampling_{name}": value for name, value in settings.items()},
    }


def test_the_correction_is_off_and_its_settings_are_those_of_trl(config):
    assert config(use_vllm=True).vllm_importance_sampling_correction is False
    assert GRPOConfig.vllm_importance_sampling_correction is True
    for name in ("mode", "clip_min", "clip_max"):
        field = f"vllm_importance_sampling_{name}"
        assert getattr(config(**correction()), field) == getattr(GRPOConfig, field)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_the_correction_goes_with_every_loss_type(config, loss_type, mode):
    args = config(loss_type=loss_type, **correction(mode=mode, clip_min=0.5, clip_max=2.0))
    assert args.vllm_importance_sampling_mode == mode


def test_the_correction_needs_vllm(config):
    with pytest.raises(ValueError, match=r"^vllm_importance_sampling_correction needs use_vllm"):
        config(vllm_importance_sampling_correction=True)


@pytest.mark.parametrize(
    ("name", "value"), [("mode", "token_mask"), ("clip_max", None), ("clip_min", 0.5)]
)
def test_settings_of_a_correction_that_is_off_are_errors(config, name, value):
    with pytest.raises(ValueError, match=f"^vllm_importance_sampling_{name} is used by .* is off"):
        config(**{**correction(**{name: value}), "vllm_importance_sampling_correction": False})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "token_trunc"}, "got 'token_trunc'; did you mean 'token_truncate'"),
        ({"clip_min": 3.5}, r"clip_min \(3.5\) must be less than .*clip_max \(3.0\)"),
        ({"clip_min": 2.0, "clip_max": 2.0}, r"clip_min \(2.0\) must be less than"),
        ({"clip_min": -0.5}, r"vllm_importance_sampling_clip_min must be at least 0, got -0.5"),
        ({"clip_max": -1.0}, r"vllm_importance_sampling_clip_max must be at least 0, got -1.0"),
        ({"mode": "token_truncate", "clip_max": None}, "At least one of .* must be set"),
    ],
)
def test_settings_of_the_correction_that_cannot_work(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**correction(**settings))


AHEAD = {"use_vllm": True, "loss_type": "grpo_clip", "old_log_probs": "sampler"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_vllm": False}, "max_staleness: 1 needs use_vllm"),
        ({"loss_type": "reinforce_with_baseline"}, "needs a loss_type .* grpo_clip, grpo_no_clip"),
        ({"old_log_probs": "policy"}, "max_staleness: 1 needs old_log_probs: sampler"),
        (
            {"vllm_importance_sampling_correction": True},
            "has no effect with old_log_probs: sampler",
        ),
        ({"old_log_probs": "smapler"}, "did you mean 'sampler'"),
        ({"max_staleness": -1}, "max_staleness must be at least 0, got -1"),
        ({"one_step_off": True}, "are one setting; remove one_step_off"),
        ({"one_step_off": False}, "are one setting; remove one_step_off"),
        ({"vllm_server": {"sleep_level": 2}}, "so it sleeps then; set sleep_level to 0"),
    ],
)
def test_what_staleness_needs(config, settings, message):
    assert config(**AHEAD, max_staleness=1).max_staleness == 1
    with pytest.raises(ValueError, match=message):
        config(**{**AHEAD, "max_staleness": 1, **settings})


@pytest.mark.parametrize(("former", "now"), [(True, 1), (False, 0)])
def test_one_step_off_is_the_former_name(config, former, now):
    there = config(**AHEAD, one_step_off=former)
    assert (there.max_staleness, there.one_step_off) == (now, None)
    assert dataclasses.replace(there, seed=5).max_staleness == now
    assert config().max_staleness == 0


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p"])
def test_the_sampler_cannot_be_filtered_where_the_ratio_is_to_it(config, name):
    """What vLLM says is the log-probability among the tokens that the filter leaves."""
    value = {"top_p": 0.9, "top_k": 20, "min_p": 0.1}[name]
    settings = {name: value, "old_log_probs": "sampler", "loss_type": "grpo_clip"}
    with pytest.raises(ValueError, match=f"^{name} is {value}, but .* old_log_probs to policy$"):
        config(use_vllm=True, **settings)
    assert getattr(config(**settings), name) == value  # transformers: before the filters
    assert config(use_vllm=True, **{**settings, "old_log_probs": "policy"}).use_vllm
    assert config(use_vllm=True, old_log_probs="sampler").top_p == 1


def test_a_ratio_to_the_sampler_needs_no_correction(config):
    with pytest.raises(ValueError, match="has no effect with old_log_probs: sampler"):
        config(**correction(), old_log_probs="sampler")


def test_masking_needs_no_bounds(config):
    assert config(**correction(clip_max=None)).vllm_importance_sampling_clip_max is None


# Batch geometry


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rollout_batch_size": 250, "train_batch_size": 250},
            r"rollout_batch_size \(250\) must be divisible by group_size \(8\); 248 is",
        ),
        (
            {"train_batch_size": 96},
            r"rollout_batch_size \(256\) must be divisible by train_batch_size \(96\); 192 is",
        ),
        (
            {"train_batch_size": 4, "gradient_accumulation_steps": 1},
            r"train_batch_size \(4\) must be at least group_size \(8\)",
        ),
        (
            {"train_batch_size": 128, "gradient_accumulation_steps": 3},
            r"train_batch_size \(128\) must be divisible by gradient_accumulation_steps \(3\); "
            "set gradient_accumulation_steps to 2",
        ),
        ({"group_size": 1}, "group_size must be at least 2, got 1: a baseline needs a group"),
        ({"min_tokens": 1025}, r"min_tokens must be between 0 and max_completion_length \(1024\)"),
        ({"min_tokens": -1}, r"min_tokens must be between 0 .*, got -1"),
        ({"max_completion_length": None}, "max_completion_length must be a number of tokens, got"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1, got 0"),
    ],
)
def test_batch_geometry(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "name",
    [
        "n_grpo_steps",
        "rollout_batch_size",
        "group_size",
        "train_batch_size",
        "epochs_per_rollout_batch",
        "gradient_accumulation_steps",
        "eval_every",
        "num_eval_examples",
        "save_every",
        "log_rollouts_every",
        "num_rollouts_to_log",
    ],
)
def test_counts_are_at_least_1(config, name):
    config_checks.check_at_least_1(config, name)


def test_a_process_gets_whole_micro_batches(config):
    # 256 rows / (128 cuts x 2 processes) = 1 row; 3 processes do not divide them.
    cut = {"gradient_accumulation_steps": 128}
    assert config(processes=2).train_batch_share == 128
    assert config(processes=2, **cut).rows_per_microbatch == 1
    with pytest.raises(
        ValueError, match=r"^3 processes cannot share train_batch_size \(256\) rows"
    ):
        config(processes=3)
    with pytest.raises(
        ValueError, match=r"set gradient_accumulation_steps to 64, or leave it unset$"
    ):
        config(processes=4, **cut)
    assert config(processes=4).rows_per_microbatch is None


def test_a_process_that_is_alone_among_several_is_an_error(config, monkeypatch):
    config_checks.check_a_process_that_is_alone_among_several_is_an_error(
        R1ZeroGRPOConfig, config, monkeypatch
    )


# (epochs x train_batch_size on 256 rollouts) -> updates per epoch, per GRPO step
@pytest.mark.parametrize(
    ("epochs", "train_batch_size", "per_epoch", "per_step"),
    [(1, 256, 1, 1), (2, 128, 2, 4), (4, 64, 4, 16)],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_derived_values(config, epochs, train_batch_size, per_epoch, per_step, processes):
    args = config(
        processes,
        epochs_per_rollout_batch=epochs,
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=train_batch_size // 4,
        eval_every=10,
        save_every=25,
    )
    assert args.updates_per_epoch == per_epoch
    assert args.updates_per_grpo_step == per_step
    assert args.max_steps == 200 * per_step
    assert args.eval_steps == 10 * per_step
    assert args.save_steps == 25 * per_step
    assert args.num_iterations == epochs
    assert args.steps_per_generation == per_epoch
    assert args.generation_batch_size == 256
    assert args.per_device_train_batch_size == train_batch_size // processes
    # The rows that a process draws per update, as TRL computes them, are its share of the rollouts.
    assert args.per_device_train_batch_size * args.steps_per_generation == 256 // processes
    assert (args.num_generations, args.num_generations_eval) == (8, 1)
    assert (args.eval_strategy, args.save_strategy) == ("steps", "steps")
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_accuracy", True)


def test_no_validation_and_no_checkpoints(config):
    args = config(eval_every=None, save_every=None)
    assert (args.eval_strategy, args.save_strategy) == ("no", "no")
    assert args.metric_for_best_model is None


# dataclasses.replace


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rate": 1e-6},
        {"group_size": 4},
        {"n_grpo_steps": 10},
        {"epochs_per_rollout_batch": 2, "train_batch_size": 64, "gradient_accumulation_steps": 32},
        {"loss_type": "no_baseline"},
        {"eval_every": None, "save_every": 5},
    ],
)
def test_replace(config, changes):
    config_checks.check_replace(config, changes)


def test_replace_keeps_the_divisor_bound_to_the_length(config):
    args = dataclasses.replace(config(aggregation="masked_normalize"), max_completion_length=512)
    assert args.sequence_divisor == 512.0
    assert dataclasses.replace(args, aggregation="masked_mean").sequence_divisor is None


def test_replace_cannot_set_derived_fields(config):
    config_checks.check_replace_cannot_set_derived_fields(config)
