"""Expert iteration: what is kept, what is trained on, its files, its resume."""

import json
import logging
import math

import pytest
import torch
from datasets import Dataset
from launch_rewards import many_digits, odd_digits
from tiny_models import make_tiny_model
from transformers import TrainerCallback

from trl_r1zero.evaluation import GradedCompletion
from trl_r1zero.generation import Completion
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import ExpertIterationConfig, ExpertIterationTrainer, read_metrics
from trl_r1zero.trainers.kept_rollouts import (
    EIStep,
    choose_kept,
    read_ei_steps,
    read_kept,
    write_ei_step,
)
from trl_r1zero.trainers.results import remove_results

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 12, "num_validation": 6}
).load()


def says_right(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": float("right" in response)}


def make_trainer(tokenizer, output_dir, *, reward=odd_digits, **settings) -> ExpertIterationTrainer:
    callbacks = settings.pop("callbacks", None)
    settings = {
        "n_ei_steps": 3,
        "ei_batch_size": 4,
        "group_size": 4,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "eval_every": None,
        "save_every": None,
        "disable_tqdm": True,
        "seed": 0,
        **settings,
    }
    trainer = ExpertIterationTrainer(
        model=make_tiny_model(tokenizer),
        args=ExpertIterationConfig(output_dir=str(output_dir), **settings),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        reward_fn=reward,
        processing_class=tokenizer,
        stop=TASK.prompt.stop,
        callbacks=callbacks,
    )
    remove_results(trainer)  # seconds for each run
    return trainer


def scripted(tokenizer, output_dir, script: list[list[str]], **settings) -> ExpertIterationTrainer:
    """Samples from a script: for each EI step, one text for each of its rollouts in turn."""
    trainer = make_trainer(
        tokenizer, output_dir, reward=says_right, n_ei_steps=len(script), **settings
    )

    def sample(prompts, sampling, seeds, description):
        texts = ["wrong"]
        if description != "Validation":
            texts = script[int(description.rsplit(" ", 1)[1]) - 1]
        texts = [texts[number % len(texts)] for number in range(len(prompts))]
        return trainer.sampler.prompt_ids(prompts), [
            Completion(ids, text, "stop", entropies=[0.5] * len(ids))
            for ids, text in zip(tokenizer(texts)["input_ids"], texts, strict=True)
        ]

    trainer.sampler.sample = sample
    return trainer


def lines_with(folder, key: str) -> list[dict]:
    return [line for line in read_metrics(folder) if key in line]


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# What is kept


def sample(*rows: tuple[int, str, bool]) -> tuple[list[GradedCompletion], list[list[int]]]:
    graded = [
        GradedCompletion(
            f"Q{question}", text, "1", {"reward": float(right)}, 1, False, example=question
        )
        for question, text, right in rows
    ]
    return graded, [[number] for number in range(len(rows))]


SAMPLE = sample(
    (0, "a", True),
    (0, "b", False),
    (0, "a", True),
    (0, "c", True),
    (1, "a", True),
    (1, "d", False),
    (2, "e", False),
)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 2, 3, 4]),
        ({"drop_duplicates": True}, [0, 3, 4]),  # question 1's own "a" stays
        ({"max_per_question": 1}, [0, 4]),
        ({"max_per_question": 2}, [0, 2, 4]),
        ({"max_per_question": 2, "drop_duplicates": True}, [0, 3, 4]),
    ],
)
def test_correct_rollouts_are_kept(settings, kept):
    assert [rollout.token_ids for rollout in choose_kept(*SAMPLE, **settings)] == [
        [number] for number in kept
    ]


def test_the_answer_reward_decides_where_there_is_one():
    rows = [
        GradedCompletion("Q", "a", "1", {"reward": 0.1, "answer_reward": 0.0}, 1, False, example=0),
        GradedCompletion("Q", "b", "1", {"reward": 1.0, "answer_reward": 1.0}, 1, False, example=0),
    ]
    assert [rollout.response for rollout in choose_kept(rows, [[0], [1]])] == ["b"]


# Bookkeeping, with scripted rollouts


def test_numbers_of_a_scripted_step(tokenizer, tmp_path):
    """Of 4 questions with 4 rollouts each the script answers right 1, 1, 1, 1, and then none."""
    script = [["right", "wrong", "wrong one", "wrong"], ["right", "right", "right", "right"]]
    trainer = scripted(tokenizer, tmp_path, script, sft_epochs_per_step=2)
    trainer.train()
    first, second = lines_with(tmp_path, "rollout_accuracy")
    assert (first["ei_step"], first["step"]) == (1, 0)
    assert first["rollout_accuracy"] == 0.25
    assert first["rollout_accuracy_stderr"] == 0.0  # all questions alike
    assert (first["rollout_pass@4"], first["rollout_pass@4_stderr"]) == (1.0, 0.0)
    assert (first["rollout_kept"], first["rollout_kept_share"]) == (4, 0.25)
    assert first["rollout_questions_kept_share"] == 1.0
    assert first["rollout_entropy"] == pytest.approx(0.5)
    # 4 rows in train batches of 4, twice; then 16.
    assert (second["ei_step"], second["step"], second["rollout_kept"]) == (2, 2, 16)
    updates = lines_with(tmp_path, "nll")
    assert [line["ei_step"] for line in updates] == [1, 1] + [2] * 8
    # "right" is one and the same response, whose tokens are all that is trained on.
    length = len(tokenizer("right")["input_ids"])
    assert {line["length/mean"] for line in updates} == {length}


def test_a_part_of_the_questions_solved(tokenizer, tmp_path):
    """16 rollouts, one text each: questions 0 to 3 have 4, 1, 0, 0 right ones."""
    script = [["right"] * 5 + ["wrong"] * 11]
    scripted(tokenizer, tmp_path, script, max_per_question=3).train()
    (line,) = lines_with(tmp_path, "rollout_accuracy")
    per_question = torch.tensor([1.0, 0.25, 0.0, 0.0])
    assert line["rollout_accuracy"] == pytest.approx(per_question.mean().item())
    assert line["rollout_accuracy_stderr"] == pytest.approx(per_question.std().item() / 2)
    assert line["rollout_pass@4"] == 0.5
    assert line["rollout_pass@4_stderr"] == pytest.approx(
        torch.tensor([1.0, 1, 0, 0]).std().item() / 2
    )
    assert (line["rollout_kept"], line["rollout_kept_share"]) == (4, 0.25)  # 3 and 1
    assert line["rollout_questions_kept_share"] == 0.5


def test_kept_rollouts_are_a_data_set_on_disk(tokenizer, tmp_path):
    scripted(tokenizer, tmp_path, [["wrong", "right", "wrong", "wrong"]]).train()
    rows = [
        json.loads(line)
        for line in (tmp_path / "expert_iteration" / "ei_step_00001.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 4
    assert {row["response"] for row in rows} == {"right"}
    assert {row["prompt"] for row in rows} <= set(TASK.train_dataset["prompt"])
    truth = dict(zip(TASK.train_dataset["prompt"], TASK.train_dataset["ground_truth"], strict=True))
    assert all(row["ground_truth"] == truth[row["prompt"]] for row in rows)
    assert all(row["token_ids"] == tokenizer("right")["input_ids"] for row in rows)
    table = (tmp_path / "rollouts" / "ei_step_00001.jsonl").read_text().splitlines()
    tokens = (tmp_path / "rollouts" / "tokens" / "ei_step_00001.jsonl").read_text().splitlines()
    assert len(tokens) == len(table)
    assert len(table) == 16


def test_a_step_without_a_correct_rollout_is_a_warning_and_the_next(tokenizer, tmp_path, caplog):
    wrong, right = ["wrong"] * 4, ["right"] * 4
    trainer = scripted(
        tokenizer, tmp_path, [wrong, right, wrong, wrong], eval_every=2, save_every=2
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "EI step 1: none of 16 rollouts is correct" in caplog.text
    assert "EI step 3" in caplog.text
    assert [line["rollout_kept"] for line in lines_with(tmp_path, "rollout_kept")] == [0, 16, 0, 0]
    assert [line["ei_step"] for line in lines_with(tmp_path, "nll")] == [2] * 4
    # At the start, after step 2, and nothing new after steps without updates but at the end.
    assert [line["ei_step"] for line in lines_with(tmp_path, "eval_accuracy")] == [0, 2, 4]
    assert trainer.steps_done == 4
    assert (tmp_path / "checkpoint-4").is_dir()


def test_no_correct_rollout_at_all_ends_with_the_policy_as_it_was(tokenizer, tmp_path):
    trainer = scripted(tokenizer, tmp_path, [["wrong"] * 4] * 2)
    before = flat(trainer.model).clone()
    trainer.train()
    assert torch.equal(flat(trainer.model), before)
    assert [line["ei_step"] for line in lines_with(tmp_path, "rollout_kept")] == [1, 2]


def test_questions_differ_from_step_to_step_until_all_were_taken(tokenizer, tmp_path):
    scripted(tokenizer, tmp_path, [["right"] * 4] * 4).train()
    prompts = [
        [rollout.prompt for rollout in read_kept(tmp_path, number)][::4] for number in (1, 2, 3, 4)
    ]
    assert all(len(set(step)) == 4 for step in prompts)
    assert set(prompts[0] + prompts[1] + prompts[2]) == set(TASK.train_dataset["prompt"])
    assert prompts[3] != prompts[0]  # another order in the second pass


def test_settings_that_cannot_work_are_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"12 questions, fewer than ei_batch_size \(13\)"):
        make_trainer(tokenizer, tmp_path, ei_batch_size=13)
    with pytest.raises(ValueError, match="needs a reward_fn"):
        make_trainer(tokenizer, tmp_path, reward=None)
    with pytest.raises(ValueError, match="lr_scheduler_type must be one of constant"):
        make_trainer(tokenizer, tmp_path, lr_scheduler_type="cosine")


# Runs of a real policy


def test_a_run_learns_and_leaves_its_files(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        reward=many_digits,
        n_ei_steps=4,
        ei_batch_size=12,
        group_size=8,
        sft_epochs_per_step=4,
        train_batch_size=8,
        learning_rate=1e-2,
        eval_every=2,
        save_every=2,
    )
    trainer.train()
    accuracies = [line["rollout_accuracy"] for line in lines_with(tmp_path, "rollout_accuracy")]
    assert len(accuracies) == 4
    assert accuracies[-1] > accuracies[0] + 0.3
    assert [line["ei_step"] for line in lines_with(tmp_path, "eval_accuracy")] == [0, 2, 4]
    entropies = [line["entropy"] for line in lines_with(tmp_path, "nll")]
    assert entropies[-1] < entropies[0]
    end = trainer.state.global_step
    assert end == sum(step.num_updates for step in trainer.ei_steps)
    assert all(
        step.num_updates == 4 * math.ceil(step.metrics["rollout_kept"] / 8)
        for step in trainer.ei_steps
    )
    for name in (
        f"checkpoint-{end}/optimizer.pt",
        "best/best.json",
        "evaluations/ei_step_00004.md",
        "rollouts/ei_step_00001.md",
        "expert_iteration/ei_step_00004.json",
        "config.json",
    ):
        assert (tmp_path / name).is_file(), name


class Interrupted(Exception):
    """A crash."""


class CrashAfter(TrainerCallback):
    """Crashes once an update is done, logged, validated and saved: as the next one begins."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.updates:
            raise Interrupted


SETTINGS = {"eval_every": 1, "save_every": 1, "save_every_updates": 1, "sft_epochs_per_step": 2}


@pytest.fixture(scope="module")
def whole_run(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(tokenizer, folder, **SETTINGS)
    trainer.train()
    assert all(step.num_updates >= 2 for step in trainer.ei_steps)
    return folder, trainer


def comparable(folder) -> list[dict]:
    timings = ("seconds", "runtime", "per_second")
    return [
        {key: value for key, value in line.items() if not any(t in key for t in timings)}
        for line in read_metrics(folder)
        if "train_runtime" not in line
    ]


@pytest.mark.parametrize("where", ["inside", "at the end", "inside the last"])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path, whole_run, where):
    """A crash inside of an EI step, and one between two, after the rollouts of the next."""
    folder, whole = whole_run
    first, second, third = whole.ei_steps
    updates = {"inside": first.end + 1, "at the end": second.end, "inside the last": third.end - 1}
    with pytest.raises(Interrupted):
        make_trainer(
            tokenizer, tmp_path, callbacks=[CrashAfter(updates[where])], **SETTINGS
        ).train()
    resumed = make_trainer(tokenizer, tmp_path, **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{updates[where]}"))
    assert comparable(tmp_path) == comparable(folder)
    assert torch.equal(flat(resumed.model), flat(whole.model))
    for number in (1, 2, 3):
        assert read_kept(tmp_path, number) == read_kept(folder, number)


def test_rollouts_that_are_on_disk_are_not_sampled_again(tokenizer, tmp_path, whole_run):
    _, whole = whole_run
    updates = whole.ei_steps[0].end
    with pytest.raises(Interrupted):
        make_trainer(tokenizer, tmp_path, callbacks=[CrashAfter(updates)], **SETTINGS).train()
    resumed = make_trainer(tokenizer, tmp_path, **SETTINGS)
    collected = []
    real = resumed.collect_rollouts
    resumed.collect_rollouts = lambda number: collected.append(number) or real(number)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{updates}"))
    assert collected == [3]  # the second step's were complete


def test_a_fresh_run_forgets_what_another_left(tokenizer, tmp_path):
    script = [["right"] * 4]
    scripted(tokenizer, tmp_path / "a", script * 3).train()
    (tmp_path / "a" / "metrics.jsonl").unlink()
    scripted(tokenizer, tmp_path / "a", script).train()
    assert sorted(path.name for path in (tmp_path / "a" / "expert_iteration").iterdir()) == [
        "ei_step_00001.json",
        "ei_step_00001.jsonl",
    ]


def test_a_checkpoint_without_its_ei_steps_is_an_error(tmp_path):
    for number, first in ((1, 0), (2, 3)):
        write_ei_step(tmp_path, EIStep(number, first, 3, {}), [])
    assert [step.number for step in read_ei_steps(tmp_path, 4)] == [1, 2]
    with pytest.raises(
        ValueError, match=r"the checkpoint has 7 updates, but the EI steps .* have 6"
    ):
        read_ei_steps(tmp_path, 7)
    (tmp_path / "expert_iteration" / "ei_step_00001.json").unlink()
    with pytest.raises(ValueError, match=r"ei_step_00001\.json does not exist, but later"):
        read_ei_steps(tmp_path, 4)


def test_later_steps_are_made_again(tmp_path):
    for number, first in ((1, 0), (2, 3), (3, 6)):
        write_ei_step(tmp_path, EIStep(number, first, 3, {}), [])
    assert [step.number for step in read_ei_steps(tmp_path, 3)] == [1, 2]
    assert not list((tmp_path / "expert_iteration").glob("ei_step_00003*"))


def test_training_rows_need_columns(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="train_dataset lacks the columns \\['ground_truth'\\]"):
        ExpertIterationTrainer(
            model=make_tiny_model(tokenizer),
            args=ExpertIterationConfig(output_dir=str(tmp_path), eval_every=None),
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            reward_fn=odd_digits,
            processing_class=tokenizer,
        )
