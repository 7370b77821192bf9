"""What a run leaves on disk, and where a resumed one goes on."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.run_folder import (
    METRICS_FILE,
    RunFolderCallback,
    checkpoint_to_resume,
    last_whole_checkpoint,
)


def begin(folder: Path, step: int = 0, main: bool = True) -> tuple:
    """A run that starts (or goes on) at `step`: its callback and what a callback is given."""
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", seed=7)
    state = TrainerState(global_step=step, is_world_process_zero=main)
    callback = RunFolderCallback()
    callback.on_train_begin(args, state, TrainerControl())
    return callback, args, state


def log(run: tuple, step: int, **logs: float) -> None:
    callback, args, state = run
    state.global_step = step
    callback.on_log(args, state, TrainerControl(), logs=logs)


# metrics.jsonl, config.json, environment.json


def test_one_line_for_each_log(tmp_path):
    run = begin(tmp_path / "new" / "run")
    log(run, 1, reward=0.25, epoch=0.1)
    log(run, 2, reward=0.5, loss=-1.0)
    first, second = read_metrics(tmp_path / "new" / "run")
    assert {**first, "elapsed_seconds": 0} == {"step": 1, "elapsed_seconds": 0, "reward": 0.25}
    assert {**second, "elapsed_seconds": 0} == {
        "step": 2,
        "elapsed_seconds": 0,
        "reward": 0.5,
        "loss": -1.0,
    }
    assert 0 <= first["elapsed_seconds"] <= second["elapsed_seconds"] < 60


def test_settings_and_environment_are_written(tmp_path):
    begin(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["packages"]["trl"] == version("trl")


def test_other_processes_write_nothing(tmp_path):
    run = begin(tmp_path / "run", main=False)
    log(run, 1, reward=0.5)
    assert not (tmp_path / "run" / METRICS_FILE).exists()
    assert not (tmp_path / "run" / "config.json").exists()


def test_resuming_drops_the_lines_after_the_checkpoint(tmp_path):
    run = begin(tmp_path)
    for step in range(1, 6):
        log(run, step, reward=step / 10)
    resumed = begin(tmp_path, step=3)
    log(resumed, 4, reward=0.9)
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["reward"]) for line in lines] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.9),
    ]


def test_resuming_counts_the_seconds_on(tmp_path):
    lines = [{"step": 1, "elapsed_seconds": 100.0}, {"step": 2, "elapsed_seconds": 250.0}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    log(begin(tmp_path, step=1), 2, reward=1.0)
    # The second at step 2 that was dropped does not count.
    assert 100 <= read_metrics(tmp_path)[-1]["elapsed_seconds"] < 110


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    log(begin(tmp_path), 1, reward=1.0)
    begin(tmp_path)
    assert not (tmp_path / METRICS_FILE).exists()


def test_read_metrics_of_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl does not exist; give the output"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "rew', b"\0\0\0", b'{"step": 3}garbage\n', b"\xff\n"]
)
def test_a_cut_or_garbage_behind_the_checkpoint_costs_nothing(tmp_path, tail):
    run = begin(tmp_path)
    log(run, 1, reward=0.5)
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(tail)
    log(run, 2, reward=0.75)  # a line of its own in any case
    if tail.endswith(b"\n"):
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: got b'.*remove the line"):
            read_metrics(tmp_path)
    else:
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    log(begin(tmp_path, step=1), 2, reward=1.0)
    assert [line["reward"] for line in read_metrics(tmp_path)] == [0.5, 1.0]


def test_garbage_before_the_checkpoint_is_an_error_with_its_line(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(b'[1]\n{"step": 1, "elapsed_seconds": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: got b'\[1\]'"):
        begin(tmp_path, step=1)


def test_what_is_not_finite_is_null(tmp_path):
    log(begin(tmp_path), 1, reward=float("nan"), loss=float("inf"))
    assert b'"reward": null, "loss": null' in (tmp_path / METRICS_FILE).read_bytes()


# checkpoint_to_resume


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")


def test_a_fresh_start(tmp_path):
    assert checkpoint_to_resume(tmp_path / "new", None) is None
    assert checkpoint_to_resume(tmp_path, None) is None


def test_a_fresh_start_does_not_overwrite_a_run(tmp_path):
    (tmp_path / METRICS_FILE).touch()
    with pytest.raises(ValueError, match=r"run; choose another --output_dir, .* anew, .* auto`"):
        checkpoint_to_resume(tmp_path, None)
    make_checkpoints(tmp_path, 1)
    with pytest.raises(ValueError, match=r"already holds a run; choose another .* last`"):
        checkpoint_to_resume(tmp_path, None)


@pytest.mark.parametrize("word", ["last", "auto"])
def test_the_newest_checkpoint_by_number(tmp_path, word):
    make_checkpoints(tmp_path, 9, 100, 20)
    (tmp_path / METRICS_FILE).touch()
    assert checkpoint_to_resume(tmp_path, word) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1, '])
def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, state):
    make_checkpoints(tmp_path, 9, 10, 11)
    (tmp_path / "checkpoint-12-old").mkdir()
    path = tmp_path / "checkpoint-11" / "trainer_state.json"
    path.unlink() if state is None else path.write_text(state)
    assert checkpoint_to_resume(tmp_path, "last") == str(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(ValueError, match=r"checkpoint-11 was not written to its end: .* earlier"):
        checkpoint_to_resume(tmp_path, str(path.parent))


def test_no_checkpoint_yet(tmp_path):
    assert checkpoint_to_resume(tmp_path, "auto") is None
    assert checkpoint_to_resume(tmp_path / "new", "auto") is None
    with pytest.raises(ValueError, match=r"there is no checkpoint in .* to its end; use `auto`"):
        checkpoint_to_resume(tmp_path, "last")


def test_a_path(tmp_path):
    make_checkpoints(tmp_path, 9, 20)
    path = str(tmp_path / "checkpoint-9")
    assert checkpoint_to_resume(tmp_path / "elsewhere", path) == path
    with pytest.raises(ValueError, match="'lst', which is no folder; give the path"):
        checkpoint_to_resume(tmp_path, "lst")
