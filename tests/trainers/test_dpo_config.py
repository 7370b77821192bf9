"""Settings of DPO: defaults, checks, and what becomes of every field of TRL's config."""

from functools import partial

import config_checks
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig

from trl_r1zero.trainers import R1ZeroDPOConfig, R1ZeroDPOTrainer
from trl_r1zero.trainers.trl_fields import DPO_DERIVED_FIELDS, DPO_UNSUPPORTED_FIELDS

# TRL's fields that mean here what they mean there.
SUPPORTED_FIELDS = {
    "beta",
    "disable_dropout",
    "max_length",
    "model_init_kwargs",
    "precompute_ref_batch_size",
    "precompute_ref_log_probs",
    "trust_remote_code",
}

# A value other than the default for each field that cannot be set.
OTHER = {
    **config_checks.OTHER_DERIVED,
    **config_checks.OTHER_UNSUPPORTED,
    "per_device_eval_batch_size": 8,
    "dataset_num_proc": 4,
    "dataloader_drop_last": True,
    "dataloader_num_workers": 2,
    "train_sampling_strategy": "sequential",
    "prediction_loss_only": True,
    "ignore_data_skip": True,
    "pad_token": "<pad>",
    "truncation_mode": "keep_end",
    "padding_free": True,
    "loss_type": ["ipo"],
    "loss_weights": [1.0],
    "ld_alpha": 0.5,
    "f_divergence_type": "forward_kl",
    "f_alpha_divergence_coef": 0.25,
    "label_smoothing": 0.1,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "activation_offloading": True,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 64,
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return partial(config_checks.make_config, R1ZeroDPOConfig, tmp_path, monkeypatch)


def test_defaults_are_the_handouts(make):
    config = make()
    assert (config.beta, config.learning_rate, config.optim) == (0.1, 1e-6, "rmsprop")
    assert (config.train_batch_size, config.per_device_eval_batch_size) == (64, 2)
    assert (config.num_train_epochs, config.lr_scheduler_type) == (1, "constant")
    assert config.precompute_ref_log_probs
    assert config.loss_type == ["sigmoid"]


def test_every_field_of_trl_is_classified():
    config_checks.check_every_field_of_trl_is_classified(
        R1ZeroDPOConfig, DPOConfig, SUPPORTED_FIELDS
    )


def test_every_derived_field_names_settings_that_exist():
    config_checks.check_every_derived_field_names_settings_that_exist(R1ZeroDPOConfig)


@pytest.mark.parametrize("name", DPO_DERIVED_FIELDS)
def test_a_derived_field_cannot_be_set(make, name):
    config_checks.check_a_derived_field_cannot_be_set(make, name, OTHER[name])


@pytest.mark.parametrize("name", DPO_UNSUPPORTED_FIELDS)
def test_an_unsupported_field_cannot_be_set(make, name):
    config_checks.check_an_unsupported_field_cannot_be_set(make, name, OTHER[name])


def test_shares_of_processes(make):
    config = make(processes=2, gradient_accumulation_steps=8)
    assert (config.train_batch_share, config.rows_per_microbatch) == (32, 4)
    assert config.per_device_train_batch_size == 32
    assert config.per_device_eval_batch_size == 4
    with pytest.raises(ValueError, match=r"train_batch_size .64. must be divisible by"):
        make(processes=4, gradient_accumulation_steps=32)  # micro-batches of half a pair


def test_a_process_that_is_alone_among_several_is_an_error(make, monkeypatch):
    config_checks.check_a_process_that_is_alone_among_several_is_an_error(
        R1ZeroDPOConfig, make, monkeypatch
    )


@pytest.mark.parametrize(
    "name",
    [
        "train_batch_size",
        "gradient_accumulation_steps",
        "save_every",
        "max_length",
        "eval_every",
        "precompute_ref_batch_size",
    ],
)
def test_at_least_1(make, name):
    config_checks.check_at_least_1(make, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be finite and above 0, got 0.0"),
        ({"beta": float("inf")}, "beta must be finite and above 0, got inf"),
        ({"num_train_epochs": 0.5}, "num_train_epochs must be 1, 2, 3"),
        ({"overlong": "cut"}, "overlong must be one of drop, error, got 'cut'"),
        ({"ref_device": "cuda:1"}, "set precompute_ref_log_probs to false, or remove ref_device"),
        (
            {"ref_device": "gpu1", "precompute_ref_log_probs": False},
            "ref_device must be a device such as cuda:1 or cpu, got 'gpu1'",
        ),
        (
            {
                "ref_device": "cuda:1",
                "precompute_ref_log_probs": False,
                "processes": 2,
                "gradient_accumulation_steps": 32,
            },
            "remove ref_device, or start one process",
        ),
    ],
)
def test_what_cannot_work_is_an_error(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_reference_device_that_is_not_there_is_an_error(make, monkeypatch):
    config = make(ref_device="cuda:1", precompute_ref_log_probs=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config.check_ref_device_is_there()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"'cuda:1', but this run sees 1 GPU .*no gpu_ids"):
        config.check_ref_device_is_there()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"this run sees no GPU"):
        # Before the model, which there is not, is loaded.
        pairs = Dataset.from_list([{"instruction": "a", "chosen": "b", "rejected": "c"}])
        R1ZeroDPOTrainer(model="no/model", args=config, train_dataset=pairs, eval_dataset=pairs)
    make(ref_device="cpu", precompute_ref_log_probs=False).check_ref_device_is_there()


def test_replace(make):
    config_checks.check_replace(make, {"train_batch_size": 32, "gradient_accumulation_steps": 16})
    config_checks.check_replace_cannot_set_derived_fields(make)
