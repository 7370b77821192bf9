"""What the tests of all configs check alike."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from trl_r1zero.trainers.base_config import StrictConfig

Make = Callable[..., StrictConfig]
TRANSFORMERS_FIELDS = {f.name for f in dataclasses.fields(TrainingArguments)}

# A value other than the default for each field that no config lets be set.
OTHER_DERIVED: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "max_steps": 100,
    "do_eval": True,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "save_strategy": "steps",
    "save_steps": 100,
    "metric_for_best_model": "eval_reward",
    "greater_is_better": False,
    "load_best_model_at_end": True,
    "data_seed": 1,
}
OTHER_UNSUPPORTED: dict[str, Any] = {
    "router_aux_loss_coef": 0.001,
    "auto_find_batch_size": True,
    "logging_nan_inf_filter": True,
    "pad_to_multiple_of": 8,
    "label_smoothing_factor": 0.1,
    "torch_empty_cache_steps": 10,
    "include_num_input_tokens_seen": True,
    "use_liger_kernel": True,
}


def field_names(config: type) -> set[str]:
    return {f.name for f in dataclasses.fields(config)}


def defaults_of(config: type, names: Collection[str]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return {name: defaults[name] for name in names}


def make_config(
    config: type[StrictConfig],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int = 1,
    **settings: Any,
) -> Any:
    """A config as each of `processes` processes has it."""
    if processes > 1:
        # What a launcher's processes would say. (Its environment variables would make this process
        # wait for the others.)
        monkeypatch.setattr(config, "_launched_processes", processes)
        monkeypatch.setattr(TrainingArguments, "world_size", processes)
    return config(output_dir=str(folder), **settings)


# What each field of TRL's config becomes


def check_every_field_of_trl_is_classified(
    config: type[StrictConfig], trl_config: type, supported: set[str]
) -> None:
    """A field that a new TRL brings stands in no list: decide what it means here."""
    beyond_transformers = field_names(trl_config) - TRANSFORMERS_FIELDS
    lists = [supported, set(config.derived_fields), set(config.unsupported_fields)]
    assert beyond_transformers - set().union(*lists) == set()
    for name in beyond_transformers:
        assert sum(name in names for names in lists) == 1, name
    assert supported <= field_names(trl_config)


def check_every_derived_field_names_settings_that_exist(config: type[StrictConfig]) -> None:
    settings = field_names(config) - set(config.derived_fields) - set(config.unsupported_fields)
    for name, instead in config.derived_fields.items():
        assert settings & set(instead.replace(",", " ").split()), name


def check_a_derived_field_cannot_be_set(make: Make, name: str, value: Any) -> None:
    derived_fields = make().derived_fields
    with pytest.raises(ValueError) as error:
        make(**{name: value})
    assert str(error.value) == (
        f"{name} follows from another setting; set {derived_fields[name]} instead"
    )


def check_an_unsupported_field_cannot_be_set(make: Make, name: str, value: Any) -> None:
    unsupported_fields = make().unsupported_fields
    with pytest.raises(ValueError) as error:
        make(**{name: value})
    assert str(error.value) == (
        f"{name} is not supported ({unsupported_fields[name]}); got {value!r}, remove it"
    )


# Batches and processes


def check_a_process_that_is_alone_among_several_is_an_error(
    config: type[StrictConfig], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make()
    assert alone._launched_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert alone._launched_processes == 2
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(config, "_launched_processes", 2)
    with pytest.raises(ValueError, match="WORLD_SIZE says 2 processes, but there are 1"):
        make()


def check_at_least_1(make: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(name)} must be at least 1, got 0"):
        make(**{name: 0})


# dataclasses.replace


def check_replace(make: Make, changes: Mapping[str, Any]) -> None:
    """Equal to a config made with these settings: nothing derived is left over."""
    defaults = defaults_of(type(make()), changes)
    assert dataclasses.replace(make(), **changes) == make(**changes)
    assert make() == dataclasses.replace(make(**changes), **defaults)


def check_replace_cannot_set_derived_fields(make: Make) -> None:
    with pytest.raises(ValueError, match="follows from another setting"):
        dataclasses.replace(make(), max_steps=77)
