"""From experiments to runs: the shipped ones at both scales, folders, and what is refused."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import REPOSITORY

from trl_r1zero.experiments.experiment import read_experiment
from trl_r1zero.experiments.plan import Plan, make_plan
from trl_r1zero.recipe import RecipeError

EXPERIMENTS = sorted((REPOSITORY / "recipes" / "experiments").glob("*.yaml"))
SCALES = ("embedded", "qwen2.5-math-1.5b")


def plan_of(path: Path, scale: str | None = None, root: str = "runs") -> Plan:
    return make_plan(read_experiment(path, scale), root)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe and an experiment on it, in the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(scale: dict | None = None, recipe: dict | None = None, name: str = "e.yaml") -> Path:
        base = {"model_name_or_path": "model", "output_dir": "unused", "task": "chain_arithmetic"}
        Path("grpo.yaml").write_text(yaml.safe_dump({**base, **(recipe or {})}))
        experiment = {
            "question": "Which?",
            "script": str(REPOSITORY / "recipes" / "grpo.py"),
            "scales": {"small": {"recipe": "grpo.yaml", "seeds": [0, 1], **(scale or {})}},
        }
        Path(name).write_text(yaml.safe_dump(experiment))
        return Path(name)

    return write


# The shipped experiments


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_experiment_is_a_plan_at_both_scales(path, scale, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    plan = plan_of(path, scale)
    experiment = plan.experiment
    assert experiment.file.question.endswith("?")
    assert list(experiment.file.scales) == list(SCALES)
    assert len(experiment.scale.seeds) >= 3
    assert len(plan.groups) >= 2
    assert experiment.scale.gpus == (2 if scale != "embedded" else 0)
    for run in plan.runs:
        assert run.folder.parts[:2] == ("runs", scale)
        values = run.recipe.values
        assert values["seed"] == run.seed
        assert values["output_dir"] == str(run.folder)
        assert values["resume_from_checkpoint"] == "auto"
        assert bool(values["use_vllm"]) == (scale != "embedded")


def test_all_experiments_are_there():
    assert {path.stem for path in EXPERIMENTS} == {
        "sft",
        "expert_iteration",
        "learning_rate",
        "baseline",
        "length_normalization",
        "std_normalization",
        "off_policy_broad",
        "off_policy",
        "clip",
        "prompt",
        "estimators",
    }


def test_the_off_policy_points_are_the_handout_s(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = REPOSITORY / "recipes" / "experiments" / "off_policy.yaml"
    keys = ("epochs_per_rollout_batch", "train_batch_size", "loss_type")
    for scale in SCALES:
        points = [
            tuple(run.recipe.values[key] for key in keys)
            for run in plan_of(path, scale).runs
            if run.seed == 0
        ]
        assert points == [
            (1, 256, "grpo_no_clip"),
            (2, 128, "grpo_clip"),
            (4, 64, "grpo_clip"),
        ]


def test_experiments_share_their_equal_runs(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    folders = {
        name: {run.folder for run in plan_of(REPOSITORY / f"recipes/experiments/{name}.yaml").runs}
        for name in ("learning_rate", "std_normalization", "off_policy", "clip")
    }
    assert len(folders["learning_rate"] & folders["std_normalization"]) == 3
    assert len(folders["off_policy"] & folders["clip"]) == 3


def test_seeds_of_sft_take_other_traces(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for run in plan_of(REPOSITORY / "recipes/experiments/sft.yaml").runs:
        assert run.recipe.values["subset_seed"] == run.seed


# Folders


def test_runs_come_seed_by_seed_in_folders_named_by_what_differs(write):
    plan = plan_of(write({"grid": {"learning_rate": [1e-5, 1e-4]}}))  # 1e-5 is the default
    assert [(run.label, run.seed, str(run.folder)) for run in plan.runs] == [
        ("learning_rate 1e-5", 0, "runs/small/grpo/base-seed_0"),
        ("learning_rate 1e-4", 0, "runs/small/grpo/learning_rate=1e-4-seed_0"),
        ("learning_rate 1e-5", 1, "runs/small/grpo/base-seed_1"),
        ("learning_rate 1e-4", 1, "runs/small/grpo/learning_rate=1e-4-seed_1"),
    ]
    assert [run.seed for run in plan.groups["learning_rate 1e-4"]] == [0, 1]
    assert plan.runs[1].arguments[:3] == ("--config", "grpo.yaml", "--learning_rate=0.0001")


def test_a_long_name_is_cut_and_stays_distinct(write):
    settings = {"run_name": "y" * 90, "hub_model_id": "x" * 90}
    plan = plan_of(write({"settings": settings, "grid": {"warmup_steps": [1, 2]}}))
    names = {run.folder.name for run in plan.runs}
    assert len(names) == 4
    assert all(len(name) <= 70 for name in names)
    assert all(
        re.fullmatch(r"(warmup_steps|hub_model_id)\S+-[0-9a-f]{8}-seed_\d", n) for n in names
    )


def test_a_folder_with_the_long_name_of_an_earlier_version_is_gone_on_with(write, tmp_path):
    path = write({"settings": {"run_name": "y" * 70, "hub_model_id": "x" * 5}})
    long = tmp_path / "small" / "grpo" / f"hub_model_id=xxxxx,run_name={'y' * 70}-seed_0"
    assert len(make_plan(read_experiment(path), tmp_path).runs[0].folder.name) <= 70
    long.mkdir(parents=True)
    assert make_plan(read_experiment(path), tmp_path).runs[0].folder == long


def test_a_path_in_a_value_makes_no_folders(write):
    plan = plan_of(write({"settings": {"model_name_or_path": "other/model"}}))
    assert plan.runs[0].folder == Path("runs/small/grpo/model_name_or_path=other-model-seed_0")


def test_other_seeds(write):
    plan = make_plan(read_experiment(write()), "runs", seeds=[5])
    assert [run.seed for run in plan.runs] == [5]


def test_a_folder_with_other_settings_is_refused(write):
    run = plan_of(write()).runs[0]
    run.check_folder()  # nothing there
    run.folder.mkdir(parents=True)
    run.recipe.write(run.folder / "recipe.yaml")
    run.check_folder()
    changed = plan_of(write(recipe={"group_size": 4})).runs[0]
    assert changed.folder == run.folder
    with pytest.raises(ValueError, match=r"other settings .*group_size: 8 there, 4 here") as caught:
        changed.check_folder()
    assert "Move the folder away" in str(caught.value)


def test_another_server_device_is_the_same_run(write):
    recipe = {"use_vllm": True, "vllm_server": {"devices": "1"}}
    run = plan_of(write(recipe=recipe)).runs[0]
    run.folder.mkdir(parents=True)
    run.recipe.write(run.folder / "recipe.yaml")
    plan_of(write(recipe={**recipe, "vllm_server": {"devices": "3"}})).runs[0].check_folder()


# What is refused


def test_wrong_settings_of_all_variants_are_said_before_anything_runs(write):
    path = write({"variants": {"a": {"learnin_rate": 1}, "b": {"group_size": 7}, "c": {}}})
    with pytest.raises(RecipeError) as caught:
        plan_of(path)
    message = str(caught.value)
    assert "a: command line: unknown key 'learnin_rate'; did you mean 'learning_rate'?" in message
    assert "b: rollout_batch_size (256) must be divisible by group_size (7)" in message
    assert message.count("unknown key") == 1  # once, not for each seed


def test_variants_that_are_the_same_run(write):
    with pytest.raises(RecipeError, match="a and b are the same run; leave one out"):
        plan_of(write({"variants": {"a": {}, "b": {"group_size": 8}}}))


def test_an_unknown_script(write):
    path = write()
    path.write_text(path.read_text().replace("recipes/grpo.py", "recipes/ppo.py"))
    with pytest.raises(RecipeError, match=r"script: got .*ppo.py, expected one of recipes/: grpo"):
        plan_of(path)
