"""The recipes and experiments of the assignment's 2026 edition."""

from typing import Any

import pytest
from test_recipes import differences, parse
from tiny_models import REPOSITORY

from trl_r1zero.experiments.experiment import read_experiment
from trl_r1zero.experiments.plan import make_plan

OLMO = REPOSITORY / "recipes" / "olmo2-1b"
OFF_POLICY: dict[str, Any] = {"train_batch_size": 8}
# Each recipe: the values that differ from grpo.yaml's, besides output_dir.
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo-constant": {"aggregation": "constant"},
    "grpo-dr_grpo": {"advantage": "group_mean", "aggregation": "constant"},
    "grpo-rft": {"advantage": "raw", "aggregation": "constant"},
    "grpo-max_rl": {"advantage": "max_rl", "aggregation": "constant"},
    "grpo-lr_3e-5": {"learning_rate": 3e-5},
    "grpo-lr_3e-6": {"learning_rate": 3e-6},
    "grpo-question_only": {"prompt": "question_only_2026"},
    "grpo-three_shot": {"prompt": "r1_zero_three_shot"},
    "grpo-off_policy_none": OFF_POLICY,
    "grpo-off_policy_noclip": {**OFF_POLICY, "surrogate": "unclipped_ratio"},
    "grpo-off_policy_grpo": {**OFF_POLICY, "surrogate": "clipped_ratio"},
    "grpo-off_policy_gspo": {**OFF_POLICY, "surrogate": "gspo", "cliprange": 3e-4},
}
EVALUATIONS = {
    "eval": "r1_zero",
    "eval-question_only": "question_only_2026",
    "eval-three_shot": "r1_zero_three_shot",
}


def test_every_recipe_is_listed():
    assert {path.stem for path in OLMO.glob("*.yaml")} == {"grpo", *VARIANTS, *EVALUATIONS}


def test_the_base_recipe_is_the_edition():
    config = parse(OLMO / "grpo.yaml").instances[0]
    assert (config.n_grpo_steps, config.learning_rate, config.max_grad_norm) == (200, 1e-5, 1.0)
    assert (config.rollout_batch_size, config.group_size, config.train_batch_size) == (256, 8, 256)
    assert (config.temperature, config.max_completion_length) == (1.0, 512)
    assert (config.adam_beta1, config.adam_beta2) == (0.9, 0.95)
    assert (config.eval_every, config.num_eval_examples) == (10, 1024)
    assert (config.loss.advantage, config.loss.surrogate) == ("group_mean_std", "reinforce")
    assert config.skip_zero_advantages


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_in_its_own_keys_only(name):
    path = OLMO / f"{name}.yaml"
    changed = differences(parse(path).values, parse(OLMO / "grpo.yaml").values)
    assert changed.pop("output_dir") == f"runs/olmo2-1b/{name}"
    assert changed == VARIANTS[name]


def test_the_constant_is_that_of_the_train_batch():
    config = parse(OLMO / "grpo-constant.yaml").instances[0]
    assert config.sequence_divisor == 256 * 512
    assert parse(OLMO / "grpo-off_policy_gspo.yaml").instances[0].updates_per_grpo_step == 32


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_baselines(name):
    (arguments,) = parse(OLMO / f"{name}.yaml").instances
    assert (arguments.prompt, arguments.max_tokens, arguments.temperature) == (
        EVALUATIONS[name],
        512,
        1.0,
    )


@pytest.mark.parametrize("scale", ["embedded", "olmo2-1b"])
@pytest.mark.parametrize(
    ("name", "groups"),
    {"learning_rate": 3, "prompts": None, "variants": 5, "off_policy": 4}.items(),
)
def test_the_experiments_are_plans_at_both_scales(name, groups, scale, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = REPOSITORY / f"recipes/experiments/edition_2026/{name}.yaml"
    plan = make_plan(read_experiment(path, scale), "runs")
    assert plan.experiment.file.question.endswith("?")
    assert plan.experiment.scale.seeds == [0, 1, 2, 3]
    assert len(plan.groups) == (groups or {"embedded": 2, "olmo2-1b": 3}[scale])
    for run in plan.runs:
        updates = run.recipe.instances[0].updates_per_grpo_step
        assert updates == (32 if name == "off_policy" else 1)
