"""Tokens that a run spent, from the lines that it logged."""

import json

import pytest
from report_runs import write_metrics

from trl_r1zero.runs.logged_run import LoggedRun, by_change


def _tokens(folder, lines, **settings):
    """Tokens at the validations."""
    write_metrics(folder, lines)
    (folder / "config.json").write_text(json.dumps(settings))
    run = LoggedRun(folder)
    return [run.tokens_at(line) for line in run.validations]


def _validation(key, number, step):
    return {"step": step, "elapsed_seconds": 1.0, "eval_accuracy": 0.5, key: number}


def _update(grpo_step, step, length):
    return {"step": step, "elapsed_seconds": 1.0, "length/mean": length, "grpo_step": grpo_step}


def test_grpo_samples_its_mean_length_times_its_rollouts(tmp_path):
    lines = [
        _validation("grpo_step", 0, 0),
        _update(1, 1, 10.0),
        _update(2, 2, 20.0),
        _validation("grpo_step", 2, 2),
    ]
    settings = {"train_batch_size": 64, "epochs_per_rollout_batch": 1}
    assert _tokens(tmp_path, lines, **settings) == [0, 64 * 30]


def test_grpo_counts_a_rollout_once_however_often_it_is_trained_on(tmp_path):
    # 4 rollouts of 6, 6, 10 and 14 tokens: 2 train batches of 2, in each of 2 epochs
    lengths = (6.0, 12.0, 8.0, 10.0)
    lines = [_update(1, step, length) for step, length in enumerate(lengths, start=1)]
    lines.append(_validation("grpo_step", 1, 4))
    settings = {"train_batch_size": 2, "epochs_per_rollout_batch": 2}
    assert _tokens(tmp_path, lines, **settings) == [36]


def test_grpo_lines_that_average_several_updates_weigh_as_many(tmp_path):
    lines = [_update(2, 2, 10.0), _validation("grpo_step", 3, 3), _update(4, 4, 20.0)]
    settings = {"train_batch_size": 8, "epochs_per_rollout_batch": 1}
    # 2 updates of 10, and one of the two of 20
    assert _tokens(tmp_path, lines, **settings) == [8 * 40]


def test_grpo_without_the_settings_or_lengths_does_not_know(tmp_path):
    lines = [_update(1, 1, 10.0), _validation("grpo_step", 1, 1)]
    assert _tokens(tmp_path, lines) == [None]
    settings = {"train_batch_size": 8, "epochs_per_rollout_batch": 1}
    assert _tokens(tmp_path, [_validation("grpo_step", 0, 0)], **settings) == [None]


def _rollouts(ei_step, step, **more):
    return {"step": step, "elapsed_seconds": 1.0, "rollout_accuracy": 0.5, "ei_step": ei_step,
            **more}  # fmt: skip


def test_expert_iteration_adds_the_rollouts_of_its_steps(tmp_path):
    lines = [
        _validation("ei_step", 0, 0),
        _rollouts(1, 0, rollout_tokens=1),  # sampled anew by a resumed run
        _rollouts(1, 0, rollout_tokens=100),
        _validation("ei_step", 1, 5),
        _rollouts(2, 5, rollout_tokens=30),
        _rollouts(3, 5, rollout_tokens=50),  # the step before had nothing to train on
        _validation("ei_step", 3, 9),
    ]
    assert _tokens(tmp_path / "a", lines) == [0, 100, 180]
    lines.append(_rollouts(4, 9))
    lines.append(_validation("ei_step", 4, 9))
    assert _tokens(tmp_path / "b", lines)[-1] is None


def test_sft_counts_what_it_trained_on(tmp_path):
    def update(step, tokens):
        return {"step": step, "elapsed_seconds": 1.0, "num_tokens": tokens, "train_step": step}

    lines = [
        _validation("train_step", 0, 0),
        update(4, 1000.0),
        update(8, 1800.0),
        _validation("train_step", 8, 8),
        _validation("train_step", 9, 9),
    ]
    assert _tokens(tmp_path, lines) == [0, 1800, 1800]


@pytest.mark.parametrize("name", ["answer_reward", "reward"])
def test_telling_questions_come_by_turns(name):
    def row(right):
        return {"reward": 0.0, name: float(right)}  # the answer reward decides, where there is one

    changes = [(1, 1), (0, 0), (0, 1), (1, 0), (0, 1)]
    pairs = [(row(before), row(after)) for before, after in changes]
    assert by_change(pairs) == [2, 1, 3, 0, 4]
