"""The table of kinds of runs: whole, and unambiguous."""

import json
from dataclasses import fields

import pytest
from report_runs import write_metrics
from tiny_models import REPOSITORY

import trl_r1zero
from trl_r1zero.runs.kinds import KINDS, METHODS
from trl_r1zero.runs.logged_run import LoggedRun
from trl_r1zero.trainers.instruction_tuning import STEP_KEY, STEP_NAME

ALL = list(KINDS.values())


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.method)
def test_a_kind_has_a_script_and_rows_of_metrics(kind):
    assert (REPOSITORY / "recipes" / f"{kind.method}.py").is_file()
    assert METHODS[kind.method] == kind.dataclasses
    settings = {field.name for field in fields(kind.dataclasses[0])}
    assert {kind.planned, kind.own_setting or kind.planned} <= settings
    assert kind.best in kind.validation_rows
    assert kind.panels and kind.training_rows


def test_steps_are_counted_as_the_trainers_count_them():
    """The table names them itself, so that a report needs no torch."""
    counted = [
        trl_r1zero.R1ZeroGRPOTrainer,
        trl_r1zero.R1ZeroSFTTrainer,
        trl_r1zero.ExpertIterationTrainer,
        trl_r1zero.R1ZeroDPOTrainer,
    ]
    steps = {(one.step_key, one.step_name) for one in counted} | {(STEP_KEY, STEP_NAME)}
    assert {(kind.step_key, kind.step_name) for kind in ALL} == steps


def test_kinds_are_told_apart_by_what_a_run_writes():
    assert len(METHODS) == len(KINDS) == 5
    for number, kind in enumerate(ALL):
        others = {f.name for one in ALL[:number] + ALL[number + 1 :]
                  for f in fields(one.dataclasses[0])}  # fmt: skip
        assert kind.own_setting not in others
    assert [kind.method for kind in ALL if kind.own_setting is None] == ["sft"]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.method)
def test_a_run_is_of_the_kind_that_its_lines_or_its_settings_say(tmp_path, kind):
    line = {"step": 1, "elapsed_seconds": 1.0, kind.step_key: 1, "loss": 0.5}
    assert LoggedRun(write_metrics(tmp_path / "begun", [line])).kind is kind
    folder = write_metrics(tmp_path / "new", [])
    (folder / "config.json").write_text(json.dumps({kind.own_setting: 5, "train_batch_size": 1}))
    assert LoggedRun(folder).kind is kind
