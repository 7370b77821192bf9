"""Runs under the clock: killed and started again, stopped in time, with two processes."""

import json
import shutil
import time

import pytest
from launching import launch
from leaderboard_runs import RECIPE, SCRIPT, broken_rules, events_of, parsed

from trl_r1zero import R1ZeroGRPOTrainer
from trl_r1zero.leaderboard import runner
from trl_r1zero.leaderboard.clock import (
    CLOCK_FILE,
    FINISHED,
    START,
    STEP,
    TRAINING_ENDED,
    VALIDATION,
    Clock,
    StopInTime,
    train_and_evaluate,
)
from trl_r1zero.leaderboard.submission import read_submission
from trl_r1zero.recipe.loading import load_tokenizer, model_settings
from trl_r1zero.trainers.results import remove_results

pytestmark = pytest.mark.slow

# Killed and started again


def test_the_clock_goes_on_across_a_kill(killed_run):
    events = events_of(killed_run.folder)
    first, second = (event for event in events if event["event"] == START)
    assert killed_run.launched_at - 2 <= events[0]["process_started"] <= killed_run.killed_at
    assert first["time"] < killed_run.killed_at <= killed_run.restarted_at < second["time"]
    steps = [event["grpo_step"] for event in events if event["event"] == STEP]
    done = sum(event["event"] == STEP for event in events[: events.index(second)])
    assert steps[:done] == list(range(1, done + 1))
    assert done <= steps[done] <= done + 1  # it lost the current step, and at most one more
    assert events[-1]["event"] == FINISHED
    about = read_submission(killed_run.folder / "submission")
    assert about["seconds"] == pytest.approx(
        events[-1]["time"] - events[0]["process_started"], abs=0.01
    )
    assert about["seconds"] > events[-1]["time"] - killed_run.restarted_at + 2
    assert "goes on" in killed_run.stdout


def test_the_submission_is_whole_and_holds_every_rule(killed_run):
    folder = killed_run.folder / "submission"
    assert broken_rules(folder) == []
    about = read_submission(folder)
    assert about["num_problems"] == 512
    # All of its steps, or on a machine that is too busy, as many as there was time for.
    assert 3 <= about["grpo_steps"] <= 40
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "every rule holds" in killed_run.stdout
    assert (killed_run.folder / "final" / "model.safetensors").is_file()


def test_a_finished_submission_is_left_alone(killed_run, board_model, capsys):
    before = (killed_run.folder / "submission" / "submission.json").read_bytes()
    runner.run_submission(parsed(board_model, killed_run.folder))
    assert "is finished" in capsys.readouterr().out
    assert (killed_run.folder / "submission" / "submission.json").read_bytes() == before


def test_a_run_that_was_killed_in_its_evaluation_evaluates_again(killed_run, board_model, tmp_path):
    """As a kill leaves it: training had ended, and the clock goes on."""
    folder = tmp_path / "run"
    shutil.copytree(killed_run.folder, folder)
    shutil.rmtree(folder / "submission")
    lines = (folder / CLOCK_FILE).read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == FINISHED
    (folder / CLOCK_FILE).write_text("".join(lines[:-1]))
    # The recipe of a copy: only its folder differs.
    recipe = parsed(board_model, folder)
    recipe.write(folder / "recipe.yaml")
    runner.run_submission(recipe)
    events = events_of(folder)
    kinds = [event["event"] for event in events]
    assert kinds[-3:] == [TRAINING_ENDED, START, FINISHED]
    assert kinds.count(TRAINING_ENDED) == 1
    # The same weights: the same answers.
    assert events[-1]["accuracy"] == events_of(killed_run.folder)[-1]["accuracy"]
    about = read_submission(folder / "submission")
    assert about["seconds"] == pytest.approx(
        events[-1]["time"] - events[0]["process_started"], abs=0.01
    )


def test_a_run_that_comes_too_late_says_so(killed_run, board_model, tmp_path):
    """It is evaluated at once, and its submission names the rule."""
    folder = tmp_path / "run"
    shutil.copytree(killed_run.folder, folder)
    shutil.rmtree(folder / "submission")
    lines = [json.loads(line) for line in (folder / CLOCK_FILE).read_text().splitlines()]
    del lines[-2:]
    for line in lines:  # the same run, begun 10 minutes earlier
        line["time"] -= 600
        if "process_started" in line:
            line["process_started"] -= 600
    (folder / CLOCK_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = parsed(board_model, folder)
    recipe.write(folder / "recipe.yaml")
    runner.run_submission(recipe)
    events = events_of(folder)
    assert [event["event"] for event in events[-3:]] == [START, TRAINING_ENDED, FINISHED]
    assert "seconds are left" in events[-2]["reason"]
    assert broken_rules(folder / "submission") == ["seconds"]


def test_a_submission_that_a_kill_prevented_is_written(killed_run, board_model, tmp_path):
    """The clock had ended, so it does not go on."""
    folder = tmp_path / "run"
    shutil.copytree(killed_run.folder, folder)
    shutil.rmtree(folder / "submission")
    runner.run_submission(parsed(board_model, folder))
    assert events_of(folder) == events_of(killed_run.folder)
    assert (
        read_submission(folder / "submission")["seconds"]
        == (read_submission(killed_run.folder / "submission")["seconds"])
    )


def test_another_recipe_cannot_go_on(killed_run, board_model, tmp_path):
    shutil.copytree(killed_run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "submission")
    path = tmp_path / "run" / CLOCK_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    recipe = parsed(board_model, tmp_path / "run", learning_rate=1e-3)
    with pytest.raises(runner.RuleBrokenError, match="learning_rate"):
        runner.run_submission(recipe)


def test_other_weights_cannot_go_on(killed_run, board_model, tmp_path):
    shutil.copytree(killed_run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "submission")
    path = tmp_path / "run" / CLOCK_FILE
    lines = path.read_text().splitlines(keepends=True)[:-1]
    first = json.loads(lines[0])
    first["facts"]["model"]["weights"]["model.safetensors"] = "0" * 64
    path.write_text("".join([json.dumps(first) + "\n", *lines[1:]]))
    recipe = parsed(board_model, tmp_path / "run")
    recipe.write(tmp_path / "run" / "recipe.yaml")
    with pytest.raises(runner.RuleBrokenError, match=r"model\.weights\.model\.safetensors: '000"):
        runner.run_submission(recipe)


def test_a_run_without_a_clock_cannot_go_on(killed_run, board_model, tmp_path):
    shutil.copytree(killed_run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "submission")
    (tmp_path / "run" / CLOCK_FILE).unlink()
    with pytest.raises(runner.RuleBrokenError, match=r"clock\.jsonl is missing"):
        runner.run_submission(parsed(board_model, tmp_path / "run"))


# Stopped in time


def run_under_clock(model, folder, budget_seconds, **changes):
    """Train and evaluate on 32 problems; the trainer and the clock's events."""
    recipe = parsed(model, folder, n_grpo_steps=100_000, save_every=None, **changes)
    config, task_args, _, model_args = recipe.instances
    task = task_args.load()
    validation = task.eval_dataset.select(range(32))
    trainer = R1ZeroGRPOTrainer(
        **model_settings(config, model_args),
        reward_funcs=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=validation,
        processing_class=load_tokenizer(model_args),
        stop=task.prompt.stop,
    )
    remove_results(trainer)  # as the runner does
    clock = Clock(folder / CLOCK_FILE)
    clock.record(START, process_started=time.time())
    stopping = StopInTime(clock, budget_seconds, len(validation), 16)
    trainer.add_callback(stopping)
    train_and_evaluate(trainer, stopping, None)
    return trainer, clock.events


def test_training_stops_by_itself_in_time(board_model, tmp_path):
    _, events = run_under_clock(board_model, tmp_path / "run", 10.0)
    kinds = [event["event"] for event in events]
    assert kinds[:2] == [START, VALIDATION]
    assert kinds.count(STEP) >= 1
    assert kinds[-2:] == [TRAINING_ENDED, FINISHED]
    assert "seconds are left" in events[-2]["reason"]
    assert events[-2]["time"] - events[0]["process_started"] < 10.0
    # The weights are saved before they are evaluated; the last evaluation is of all problems.
    assert (tmp_path / "run" / f"checkpoint-{kinds.count(STEP)}").is_dir()
    assert events[-1]["num_problems"] == 32


def test_staleness_stops_too_and_evaluates_the_last_weights(
    vllm_server, served_model_folder, tmp_path
):
    """When training ends, the server samples a rollout batch that nobody will train on."""
    trainer, events = run_under_clock(
        served_model_folder,
        tmp_path / "run",
        30.0,
        use_vllm=True,
        vllm_server_base_url=vllm_server.base_url,
        max_staleness=1,
        loss_type="grpo_clip",
        old_log_probs="sampler",
        learning_rate=1e-3,
    )
    kinds = [event["event"] for event in events]
    assert kinds.count(STEP) >= 1
    assert kinds[-2:] == [TRAINING_ENDED, FINISHED]
    assert events[-1]["num_problems"] == 32
    assert trainer.sampler._synced_at == trainer.state.global_step
    trainer.check_server()  # an error if the server had other weights


# Two processes


def test_two_processes_end_together(board_model, tmp_path):
    done = launch(
        {**RECIPE, "n_grpo_steps": 2}, tmp_path / "two", board_model, script=SCRIPT, processes=2
    )
    assert done.returncode == 0, done.stderr[-4000:]
    about = read_submission(tmp_path / "two" / "submission")
    assert about["facts"]["hardware"]["num_processes"] == 2
    assert about["grpo_steps"] == 2
    assert broken_rules(tmp_path / "two" / "submission") == []
