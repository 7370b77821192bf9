"""Functions of one's own at dotted paths: called as they ask, their options keys of a recipe."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_grpo import make_trainer, train_lines
from tiny_models import REPOSITORY

from trl_r1zero.common.plugins import Role, call_by_name, is_dotted
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.functional import compute_group_advantages
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroGRPOConfig

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from trl_r1zero.data.prompts import Prompt
from trl_r1zero.data.tasks import Example, Task
from trl_r1zero.functional import LossType


def soft_clip(advantages, policy_log_probs, old_log_probs, *, tau: float = 1.0):
    ratio = torch.exp(policy_log_probs - old_log_probs)
    return -advantages * torch.sigmoid(tau * (ratio - 1)) * 4 / tau, {"ratio": ratio.detach()}


def sees_all(advantages, policy, old, response_mask, cliprange, delta=None, floor: int = 0):
    return -advantages * policy * response_mask, {}


def scaled(rewards, scale: float, shift=0.0):
    return rewards * scale + shift


def with_eps(rewards, advantage_eps):
    return rewards / advantage_eps


def total(loss, mask, num_sequences, weight: int = 2):
    return weight * (loss * mask).sum() / num_sequences


def bonus(response, ground_truth, bonus: float = 0.0):
    return {"reward": 1.0 + bonus}


def with_helper(response, ground_truth, helper=bonus, scale=1.0, **others):
    return {"reward": scale}


def shots(number: int = 1):
    return Prompt("shots", "Q " * number + "{question}", (), "boxed")


fixed = Prompt("fixed", "{question}!", (), "boxed")


@dataclass(frozen=True)
class Counting(Task):
    name: ClassVar[str] = "counting"
    default_prompt: ClassVar[str] = "question_only"
    size: int = 3

    def examples(self, source=None, split="train"):
        return [Example(f"What comes after {n}?", str(n + 1)) for n in range(self.size)]


pair = LossType("leave_one_out", "gspo")
of_functions = LossType(with_eps, soft_clip)
# What is wrong with these is in their tests.
unknown_pair = LossType("leave_one", "gspo")
broken_pair = LossType("group_mean", lambda advantages, policy, old: -advantages * policy)
flat = lambda rewards: rewards.mean(dim=1)
broken = lambda rewards: rewards.nothing
infinite = lambda rewards: rewards / 0
no_type = lambda rewards, x: rewards
no_pair = lambda advantages, policy, old: -advantages * policy
constant = lambda advantages, policy, old: (torch.zeros_like(old), {})
of_rows = lambda advantages, policy, old: (-advantages * policy, {"ratio": advantages})
mean_all = lambda loss, mask: loss[mask].mean()
few = lambda response: {"reward": 1.0}
no_reward = lambda response, ground_truth: {"score": 1.0}
text = lambda: "Q: {question}"
raises = lambda: 1 / 0
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def config(tmp_path):
    def config(**settings):
        return R1ZeroGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)

    return config


def test_what_a_dotted_path_is():
    assert is_dotted("a.b") and is_dotted("a_b.C.d")
    for name in (None, ["a.b"], "a", "a.txt", "dir/a.b", "a b.c", ".a", "a.", "1.5", "r1-zero.x"):
        assert not is_dotted(name), name


def test_a_function_gets_what_it_names():
    named = {"x": 1, "y": 2}
    assert call_by_name(lambda a, y: (a, y), (0,), named) == (0, 2)
    assert call_by_name(lambda a: a, (0,), named) == 0
    with pytest.raises(TypeError, match="z"):
        call_by_name(lambda a, z: a, (0,), named)


# Options


def test_options_are_typed_by_the_signature(config):
    args = config(surrogate="mine.soft_clip", plugin_options={"soft_clip.tau": 2})
    assert args.loss.surrogate.keywords == {"tau": 2.0}
    assert config(surrogate="mine.soft_clip").loss.surrogate.__name__ == "soft_clip"
    args = config(
        advantage="mine.scaled", plugin_options={"scaled.scale": 0.5, "scaled.shift": 1.0}
    )
    advantages = compute_group_advantages(torch.tensor([1.0, 3.0]), 2, args.loss.advantage, 0.0)
    assert advantages.tolist() == [1.5, 2.5]
    assert args.advantage == "mine.scaled"


def test_what_the_kind_offers_is_no_option(config):
    args = config(advantage="mine.with_eps", advantage_eps=0.5)
    advantages = compute_group_advantages(torch.tensor([1.0, 3.0]), 2, args.loss.advantage, 0.5)
    assert advantages.tolist() == [2.0, 6.0]
    surrogate = Role("surrogate", ("a", "p", "o"), ("response_mask", "cliprange", "delta"), {})
    assert set(surrogate.options("mine.sees_all")) == {"sees_all.floor"}
    config(surrogate="mine.sees_all")
    assert surrogate.options("math.hypot") == {}  # takes any number


def test_a_loss_type_of_ones_own(config):
    args = config(loss_type="mine.pair")
    assert (args.loss.advantage, args.loss.surrogate) == ("leave_one_out", "gspo")
    args = config(loss_type="mine.of_functions", advantage_eps=0.1)
    assert args.loss.advantage.__name__ == "with_eps"
    assert args.advantage is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "mine.unknown_pair"}, "unknown advantage 'leave_one'; did you mean"),
        ({"loss_type": "mine.broken_pair"}, "surrogate mine.broken_pair: expected .loss, meta"),
        (
            {"loss_type": "mine.pair", "use_std_normalization": True},
            "is for the advantage 'group_mean', and this loss type has 'leave_one_out'",
        ),
        ({"surrogate": "mine.soft_clip", "plugin_options": {"soft_clip.tao": 1}}, "did you mean"),
        (
            {"surrogate": "mine.soft_clip", "plugin_options": {"soft_clip.tau": "x"}},
            "soft_clip.tau: got 'x', expected float",
        ),
        ({"plugin_options": {"soft_clip.tau": 1.0}}, "unknown option of a plug-in"),
        ({"advantage": "mine.scaled"}, "scaled.scale: no value given"),
        ({"advantage": "mine.no_type"}, "'x' has neither a type nor a default"),
        ({"advantage": "mine.scale"}, "did you mean 'scaled'"),
        ({"advantage": "nowhere.scale"}, "No module named 'nowhere'"),
        ({"surrogate": "mine.flat"}, r"takes 1 arguments by position, but is called with 3: adv"),
        ({"advantage": "mine.flat"}, r"advantages has shape \(2,\), but rewards has"),
        ({"advantage": "mine.broken"}, "on a tiny batch it raised AttributeError"),
        ({"advantage": "mine.infinite"}, "expected finite numbers"),
        ({"surrogate": "mine.no_pair"}, r"expected \(loss, metadata as a dict\)"),
        ({"surrogate": "mine.constant"}, "does not depend on the policy"),
        ({"surrogate": "mine.of_rows"}, "metadata 'ratio': expected a tensor of shape"),
        ({"aggregation": "mine.mean_all"}, "the gradient would depend on the cut"),
        ({"aggregation": "mine.total", "normalize_constant": 2.0}, "remove one"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


# Recipes

RECIPE = {
    "use_cpu": True,
    "task": "mine.Counting",
    "Counting.size": 5,
    "prompt": "mine.shots",
    "shots": {"number": 2},
    "reward": "mine.bonus",
    "bonus.bonus": 0.5,
    "surrogate": "mine.soft_clip",
    "soft_clip.tau": 3,
    "aggregation": "mine.total",
}


@pytest.fixture
def parse(tmp_path):
    path = tmp_path / "recipe.yaml"

    def parse(*argv, **changes):
        path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path), **changes}))
        return parse_recipe((R1ZeroGRPOConfig, TaskArguments), ["--config", str(path), *argv])

    return parse


def test_options_are_keys_of_a_recipe(parse, tmp_path):
    recipe = parse("--soft_clip.tau=4", "--total.weight", "3")
    config, data = recipe.instances
    assert config.loss.surrogate.keywords == {"tau": 4.0}
    assert config.bound("aggregation").keywords == {"weight": 3}
    task, prompt = data.load_task()
    assert (task.size, prompt.template) == (5, "Q Q {question}")
    reward_fn, workers = data.load_reward(task, prompt)
    assert reward_fn("", "1") == {"reward": 1.5}
    assert workers == 2
    # What is written beside a run is the same recipe.
    recipe.write(tmp_path / "again.yaml")
    again = parse_recipe(
        (R1ZeroGRPOConfig, TaskArguments), ["--config", str(tmp_path / "again.yaml")]
    )
    assert again.values == recipe.values
    assert again.instances[1] == data
    assert "soft_clip.tau: 4.0  # command line" in recipe.to_yaml()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--soft_clip.tua", "1"], r"unknown key 'soft_clip.tua'; did you mean 'soft_clip.tau'"),
        (["--soft_clip.tau", "x"], "soft_clip.tau: got x, expected float"),
        (["--shots.number", "1.5"], "shots.number: got 1.5, expected int"),
        (["--surrogate", "gspo"], "unknown key 'soft_clip.tau'"),
        (["--task_args", "{size: 2}"], "Counting.size and task_args say 'size'"),
    ],
)
def test_a_recipe_with_a_mistake_ends_with_a_message(parse, argv, message):
    with pytest.raises(ValueError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("mine.few", "cannot grade a response against the ground truth of the first example, '1'"),
        ("mine.no_reward", "must return a dict with the key 'reward'"),
    ],
)
def test_a_reward_is_called_before_a_model_is_loaded(reward, message):
    arguments = TaskArguments(task="mine.Counting", reward=reward, reward_workers=0)
    with pytest.raises(ValueError, match=message):
        arguments.load()


def test_what_a_recipe_cannot_say_is_no_option():
    role = Role("reward", ("response", "ground_truth"), (), {}, counts_inputs=False)
    assert set(role.options("mine.with_helper")) == {"with_helper.scale"}


def test_two_plug_ins_of_a_name():
    with pytest.raises(ValueError, match=r"two plug-ins are called .*; rename one of them"):
        R1ZeroGRPOConfig.option_keys({"advantage": "mine.scaled", "aggregation": "mine.scaled"})


def test_a_prompt_of_ones_own():
    assert load_prompt("mine.fixed").format("2") == "2!"
    assert load_prompt("mine.shots", {"shots.number": 3}).format("2") == "Q Q Q 2"
    with pytest.raises(ValueError, match="must be a Prompt"):
        load_prompt("mine.text")
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        load_prompt("mine.raises")


# The README's


def readme_section() -> str:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return text.split("## Your own estimator in 15 lines")[1].split("\n## ")[0]


def test_the_readme_s_estimator_trains(tokenizer, tmp_path, monkeypatch):
    code, recipe = re.findall(r"```(?:python|yaml)\n(.*?)```", readme_section(), re.DOTALL)
    assert code.count("\n") + recipe.count("\n") <= 15
    settings = yaml.safe_load(recipe)
    module = settings["surrogate"].partition(".")[0]
    Path(tmp_path / f"{module}.py").write_text(code)
    options = {key: value for key, value in settings.items() if "." in key}
    del settings["base"], settings["output_dir"]
    settings = {key: value for key, value in settings.items() if key not in options}
    trainer = make_trainer(
        tokenizer, tmp_path / "run", train_batch_size=8, plugin_options=options, **settings
    )
    trainer.train()
    lines = train_lines(tmp_path / "run")
    assert len(lines) == 4 and all(line["grad_norm"] > 0 for line in lines)
    sys.modules.pop(module, None)
