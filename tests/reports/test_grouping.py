"""Which runs are seeds of one group, and what groups are called."""

import json
from pathlib import Path

import pytest
from report_runs import seed_run

from trl_r1zero.reports.grouping import format_path, format_setting, group_runs


def _names(groups):
    return {label: [folder.name for folder in folders] for label, folders in groups.items()}


def test_groups_are_of_the_settings_that_differ(tmp_path):
    common = {"beta": 0.0, "loss_type": "grpo_clip"}
    runs = [
        seed_run(tmp_path / f"{lr}-{seed}", seed, [0.2], learning_rate=lr, data_seed=seed,
                 output_dir=f"runs/{lr}", save_every=seed, log_level=str(seed), hub_token=seed,
                 gradient_accumulation_steps=seed + 1, **common)
        for lr in (1e-3, 2e-4) for seed in (0, 1)
    ]  # fmt: skip
    assert _names(group_runs(runs)) == {
        "learning_rate 2e-4": ["0.0002-0", "0.0002-1"],
        "learning_rate 1e-3": ["0.001-0", "0.001-1"],
    }


def test_runs_that_differ_in_their_seed_only_are_one_group(tmp_path):
    runs = [seed_run(tmp_path / str(s), s, [0.2], subset_seed=s) for s in range(3)]
    assert _names(group_runs(runs)) == {"base": ["0", "1", "2"]}


def test_what_follows_from_a_recipe_is_no_setting_of_its_own(tmp_path):
    runs = [seed_run(tmp_path / str(n), 0, [0.2], num_examples=n) for n in (64, 128)]
    for steps, run in zip((10, 20), runs, strict=True):
        (run / "config.json").write_text(json.dumps({"seed": 0, "max_steps": steps}))
    assert list(group_runs(runs)) == ["num_examples 64", "num_examples 128"]
    for run in runs:
        (run / "recipe.yaml").unlink()
    assert list(group_runs(runs)) == ["max_steps 10", "max_steps 20"]


def test_values_are_ordered_and_written_as_in_recipes(tmp_path):
    values = [None, "no_clip", True, 256.0, False, 1e-5, "clip", 32, 256, {"a": 1}]
    runs = [seed_run(tmp_path / str(i), 0, [0.1], x=value) for i, value in enumerate(values)]
    groups = _names(group_runs(runs))
    assert list(groups) == [
        "x 1e-5", "x 32", "x 256", "x clip", "x false", "x no_clip", "x true", "x {a: 1}",
        "x unset",
    ]  # fmt: skip
    assert groups["x 256"] == ["3", "8"]


def test_groups_of_given_settings(tmp_path):
    runs = [
        seed_run(tmp_path / f"{n}{f}", 0, [0.1], num_examples=n, filter_correct=f)
        for n in (None, 512) for f in (True, False)
    ]  # fmt: skip
    (runs[0] / "config.json").write_text('{"lr": 1e-5}')
    assert list(group_runs(runs, ["num_examples", "filter_correct"])) == [
        "num_examples 512, filter_correct false",
        "num_examples 512, filter_correct true",
        "num_examples all, filter_correct false",
        "num_examples all, filter_correct true",
    ]
    assert list(group_runs(runs, ["num_examples"])) == ["num_examples 512", "num_examples all"]
    assert list(group_runs(runs, ["lr"])) == ["lr 1e-5", "lr unset"]  # of config.json


def test_recipe_goes_before_config(tmp_path):
    run = seed_run(tmp_path / "a", 0, [0.2], num_examples=None)
    (run / "config.json").write_text('{"num_examples": 5}')
    assert list(group_runs([run], ["num_examples"])) == ["num_examples all"]


def test_errors_say_what_to_do(tmp_path):
    run = seed_run(tmp_path / "a", 0, [0.1], x=1)
    with pytest.raises(ValueError, match="there are no run folders; give"):
        group_runs([])
    with pytest.raises(ValueError, match="group_by is empty; give a setting"):
        group_runs([run], [])
    with pytest.raises(ValueError, match="no run has the setting 'y' in its recipe"):
        group_runs([run], ["x", "y"])
    with pytest.raises(ValueError, match="is given twice; give each run once"):
        group_runs([run, tmp_path / "b" / ".." / "a"])
    with pytest.raises(FileNotFoundError, match="give the output folder of a run"):
        group_runs([tmp_path / "nothing"])


def test_paths_of_this_machine_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert format_path(tmp_path / "runs" / "a") == "runs/a"
    assert format_path(Path("runs/../b")) == "b"
    assert format_path(tmp_path.parent / "elsewhere" / "c") == "c"
    assert format_setting("model", str(tmp_path / "m")) == "m"
    assert format_setting("model", "Qwen/Qwen2.5") == "Qwen/Qwen2.5"
