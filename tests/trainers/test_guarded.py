"""Runs that cannot be silently wrong: whose folder it is, what may change, what is not finite."""

import json
import math
import os
import signal
import subprocess

import pytest
import torch
from datasets import Dataset
from folders import holds
from launch_rewards import odd_digits
from tiny_grpo import make_trainer, train_lines
from tiny_sft import make_sft_trainer
from transformers import TrainerCallback

from trl_r1zero.common.folder_lock import LOCK_FILE, FolderInUseError, holding
from trl_r1zero.common.stopping import RunStopped
from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.guarded import DivergedError, _all_finite
from trl_r1zero.trainers.run_identity import ChangedRunError, go_on_with, may_change

# One process at a time


def test_a_folder_is_one_process_s_while_that_lives(tokenizer, tmp_path):
    other = holds(tmp_path)
    try:
        with pytest.raises(FolderInUseError, match=rf"process {other.pid} on .* is working in"):
            make_trainer(tokenizer, tmp_path).train()
        assert not (tmp_path / "metrics.jsonl").exists()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == other.pid
    finally:
        other.kill()  # a dead owner keeps nothing
        other.communicate()
    with holding(tmp_path), holding(tmp_path):  # its lock is nobody's now
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_one_that_is_about_to_end_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_r1zero.common.folder_lock._NOTICE_SECONDS", 0.0)
    other = holds(tmp_path, "ends")
    ends_it = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {other.pid}"])
    with holding(tmp_path):
        assert other.wait() == -signal.SIGKILL
    ends_it.wait()


def test_without_locks_the_owner_that_lives_counts(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    monkeypatch.setattr("trl_r1zero.common.folder_lock._NOTICE_SECONDS", 0.0)
    other = holds(tmp_path)
    with pytest.raises(FolderInUseError, match=r"delete .*run\.lock"), holding(tmp_path):
        pass
    other.kill()
    other.communicate()
    with holding(tmp_path):
        pass


# What may change


@pytest.mark.parametrize("key", ["n_grpo_steps", "save_every", "log_level", "vllm_server.port"])
def test_what_may_change(key):
    assert may_change(key)


@pytest.mark.parametrize("key", ["learning_rate", "group_size", "seed", "task_args.num_train"])
def test_what_may_not_change(key):
    assert not may_change(key)


def test_all_differences_are_listed_and_changes_are_history(tmp_path):
    there = {"learning_rate": 1e-5, "task_args": {"n": 1}, "n_grpo_steps": 2, "old": 1}
    with pytest.raises(ChangedRunError) as refused:
        go_on_with(tmp_path, there, {**there, "learning_rate": 3e-5, "task_args": {"n": 2}}, "c-1")
    for line in ("learning_rate: 1e-05 there, 3e-05 here", "task_args.n: 1 there, 2 here"):
        assert line in str(refused.value)
    assert not (tmp_path / "history.jsonl").exists()
    here = {"learning_rate": 1e-5, "task_args": {"n": 1}, "n_grpo_steps": 4, "new": 1}
    go_on_with(tmp_path, there, here, str(tmp_path / "checkpoint-2"))
    (line,) = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert (line["from"], line["changed"]) == ("checkpoint-2", ["n_grpo_steps: 2 there, 4 here"])


def test_a_library_s_run_goes_on_only_as_itself(tokenizer, tmp_path):
    settings = {"n_grpo_steps": 1, "save_every": 1}
    make_trainer(tokenizer, tmp_path, **settings).train()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(tokenizer, tmp_path, **settings).train()
    for changed in ({"learning_rate": 9e-3}, {"temperature": 0.5}, {"seed": 1}):
        with pytest.raises(ChangedRunError, match=next(iter(changed))):
            make_trainer(tokenizer, tmp_path, **{**settings, **changed}).train("last")
    assert (tmp_path / "metrics.jsonl").read_text() == before
    longer = make_trainer(tokenizer, tmp_path, n_grpo_steps=4, save_every=2, save_total_limit=None)
    longer.train("auto")
    assert [line["step"] for line in train_lines(tmp_path)] == [1, 2, 3, 4]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (1, 2, 4)
    }
    assert "n_grpo_steps: 1 there, 4 here" in (tmp_path / "history.jsonl").read_text()


# Signals


class SendAt(TrainerCallback):
    def __init__(self, update: int, number: int) -> None:
        self.update, self.number = update, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.update:
            os.kill(os.getpid(), self.number)


def of(lines):
    timed = ("elapsed_seconds", "tokens_per_second", "train_runtime", "train_loss")
    return [
        {k: v for k, v in line.items() if "second" not in k and k not in timed} for line in lines
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_it_and_the_run_goes_on(tokenizer, tmp_path, number, capsys):
    """In a step of two updates, and where a validation is due."""
    settings = {"n_grpo_steps": 3, "train_batch_size": 8, "eval_every": 1, "loss_type": "grpo_clip"}
    make_trainer(tokenizer, tmp_path / "whole", **settings).train()
    handler = signal.getsignal(number)
    trainer = make_trainer(tokenizer, tmp_path / "run", **settings)
    trainer.add_callback(SendAt(2, number))
    with pytest.raises(RunStopped) as stopped:
        trainer.train()
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == handler
    told = capsys.readouterr().err
    assert f"Stopped by {number.name} after 4 of 6 updates, saved in" in told
    assert "--resume_from_checkpoint auto" in told
    assert (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").is_file()
    make_trainer(tokenizer, tmp_path / "run", **settings).train("last")
    whole, run = (of(read_metrics(tmp_path / name)[:-1]) for name in ("whole", "run"))
    assert run == whole


# What is not finite


def test_finite():
    fine = [torch.ones(3), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)]
    assert _all_finite(fine) and _all_finite([]) and _all_finite([None])
    for bad in (math.nan, math.inf, -math.inf):
        assert not _all_finite([*fine, torch.tensor([1.0, bad])])


def test_a_run_that_diverges_stops_with_its_last_checkpoint(tokenizer, tmp_path):
    settings = {"learning_rate": 1e30, "save_every": 1, "num_train_epochs": 3}
    with pytest.raises(DivergedError, match=r"not finite at update \d; the last good .*-\d+\."):
        make_sft_trainer(tokenizer, tmp_path, **settings).train()
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert "not finite at update" in lines[-1]["diverged"]


@pytest.mark.parametrize("on_divergence", ["skip_update", "warn"])
def test_what_else_may_become_of_an_update_that_is_not_finite(tokenizer, tmp_path, on_divergence):
    trainer = make_sft_trainer(
        tokenizer, tmp_path, on_divergence=on_divergence, eval_every=None, num_train_epochs=1
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]

    def broken(*args, **kwargs):
        return loss(*args, **kwargs) * math.nan

    loss, trainer.compute_loss = trainer.compute_loss, broken
    trainer.train()
    same = all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert same == (on_divergence == "skip_update")
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines[0]["loss"] is None


def test_on_divergence_is_one_of_three(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="on_divergence must be one of stop, skip_update, warn"):
        make_trainer(tokenizer, tmp_path, reward=odd_digits, on_divergence="skip")


# Numbers and texts that cannot be meant


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": -1e-3}, {"seed": -1}, {"beta": -1.0}, {"weight_decay": -0.1},
     {"max_grad_norm": math.nan}, {"adam_beta1": 1.0}],
)  # fmt: skip
def test_numbers_out_of_their_range_are_errors_of_the_config(tokenizer, tmp_path, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be "):
        make_trainer(tokenizer, tmp_path, **wrong)


def test_a_response_that_is_no_text_is_named(tokenizer, tmp_path):
    traces = Dataset.from_dict({"prompt": ["a", "b"], "response": ["1", None]})
    with pytest.raises(ValueError, match=r"train_dataset, row 1, column 'response': got None"):
        make_sft_trainer(tokenizer, tmp_path, traces=traces)
