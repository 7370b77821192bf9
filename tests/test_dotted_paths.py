"""A task, a reward and a loss of one's own, named by dotted paths: the package stays as it is."""

import sys

import pytest
import torch
from tiny_grpo import make_trainer

from trl_r1zero import compute_policy_gradient_loss, get_task
from trl_r1zero.common.naming import resolve
from trl_r1zero.functional import get_loss_type
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.tasks import Example, Task
from trl_r1zero.functional import LossType


@dataclass(frozen=True)
class Counting(Task):
    name: ClassVar[str] = "counting"
    default_prompt: ClassVar[str] = "question_only"
    size: int = 3

    def examples(self, source=None, split="train"):
        return [Example(f"What comes after {n}?", str(n + 1)) for n in range(self.size)]


def squared(advantages, policy, old, cliprange):
    return advantages * policy**2, {}


squared_loss = LossType(advantage="group_mean", surrogate=squared)
longest = lambda response, ground_truth: {"reward": float(len(response))}
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def test_a_task_of_ones_own():
    task = get_task("own_parts.Counting", size=2)
    assert [example.ground_truth for example in task.load()] == ["1", "2"]
    with pytest.raises(ValueError, match=r"did you mean 'size'"):
        get_task("own_parts.Counting", sizes=2)


def test_a_recipe_takes_task_and_reward():
    arguments = TaskArguments(
        task="own_parts.Counting", reward="own_parts.longest", prompt="question_only"
    )
    loaded = arguments.load()
    assert len(loaded.train_dataset) == 3


def test_a_loss_of_ones_own():
    log_probs, advantages = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5]])
    loss, _ = compute_policy_gradient_loss(
        log_probs, "own_parts.squared_loss", advantages=advantages
    )
    assert torch.equal(loss, torch.tensor([[0.5, 2.0]]))


def test_a_trainer_with_a_loss_of_ones_own(tokenizer, tmp_path):
    norms = {}
    for loss_type in ("own_parts.squared_loss", "reinforce_with_baseline"):
        make_trainer(tokenizer, tmp_path / loss_type, loss_type=loss_type).train()
        norms[loss_type] = [
            row["grad_norm"] for row in read_metrics(tmp_path / loss_type) if "grad_norm" in row
        ]
    assert len(norms["own_parts.squared_loss"]) == 2
    assert norms["own_parts.squared_loss"] != norms["reinforce_with_baseline"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_task("own_parts.squared"), r"must be a class derived from Task"),
        (lambda: get_loss_type("own_parts.squared"), r"must be a LossType"),
        (lambda: get_loss_type("own_parts.squared_lose"), r"did you mean 'squared_loss'"),
        (lambda: get_task("nowhere.Task"), r"No module named 'nowhere'.*PYTHONPATH"),
        (lambda: get_task("..own_parts.Counting"), r"unknown task '\.\.own_parts.*dotted path"),
        (lambda: resolve("task", "mat", {"math": 1}), r"did you mean 'math'.*dotted path"),
    ],
)
def test_what_is_not_there(call, message):
    with pytest.raises(ValueError, match=message):
        call()
