"""Real sweeps: runs that finish, fail, diverge and are stopped, and what the next sweep does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from report_runs import seed_run
from tiny_models import REPOSITORY

from trl_r1zero.commands.sweep import main
from trl_r1zero.common.folder_lock import holding
from trl_r1zero.devices import visible_devices
from trl_r1zero.experiments import sweep
from trl_r1zero.experiments.experiment import read_experiment
from trl_r1zero.experiments.plan import Plan, Slot, make_plan, make_slots
from trl_r1zero.experiments.sweep import Sweep, _locked
from trl_r1zero.experiments.sweep_report import plan_text, report_plan
from trl_r1zero.runs.index import run_state
from trl_r1zero.trainers import read_metrics

RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 9},
    "reward": "launch_rewards.odd_digits",
    "output_dir": "unused",
    "n_grpo_steps": 2,
    "rollout_batch_size": 16,
    "group_size": 4,
    "train_batch_size": 8,  # so a step has two updates
    "gradient_accumulation_steps": 1,
    "loss_type": "grpo_clip",
    "max_completion_length": 12,
    "learning_rate": 3.0e-3,
    "eval_every": 1,
    "save_every": 1,
    "use_cpu": True,
}


def write_experiment(folder: Path, model: Path, **scale) -> Path:
    recipe = {**RECIPE, "model_name_or_path": str(model)}
    (folder / "grpo.yaml").write_text(yaml.safe_dump(recipe))
    experiment = {
        "question": "Which one?",
        "script": str(REPOSITORY / "recipes" / "grpo.py"),
        "scales": {"small": {"recipe": "grpo.yaml", "seeds": [3], **scale}},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return path


def statuses(plan: Plan) -> dict[str, str]:
    return {run.label: run_state(run.folder).status for run in plan.runs}


@pytest.fixture(autouse=True)
def launch_environment(tmp_path, monkeypatch):
    paths = [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.chdir(tmp_path)


def test_a_run_sees_the_gpus_of_its_slot(tiny_model_folder, tmp_path, monkeypatch):
    """Counted within what the sweep sees: 1 of physical 4 and 5 is 5."""
    path = write_experiment(tmp_path, tiny_model_folder)
    plan = make_plan(read_experiment(path), "runs")
    code = "import os; open('seen', 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ')"
    monkeypatch.setattr(sweep, "launch_command", lambda *_: [sys.executable, "-c", code])
    see = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"}, 2)
    monkeypatch.setattr(sweep, "visible_here", lambda: see)
    Sweep([plan], make_slots(["1"], 1, 1), lambda text: None).run()
    assert set((tmp_path / "seen").read_text().split()) == {"5"}
    (tmp_path / "seen").unlink()
    with pytest.raises(ValueError, match="no device '5': this run sees 2 GPUs"):
        Sweep([plan], make_slots(["5"], 1, 1), lambda text: None).run()
    assert not (tmp_path / "seen").exists()


def test_progress_says_how_far_the_runs_are_and_what_is_left(tmp_path):
    """Two runs at half of their steps after two minutes, and two that wait, on two places."""
    running = []
    for name in ("a", "b"):
        folder = seed_run(tmp_path / name, 0, [0.25, 0.5, 0.375])
        (folder / "config.json").write_text('{"n_grpo_steps": 20}')
        run = SimpleNamespace(folder=folder, name=f"{name}, seed 0")
        running.append(sweep._Running(run, Slot(0), None, None))
    several = Sweep([], make_slots([], 2, 0))
    with holding(tmp_path / "a"), holding(tmp_path / "b"):
        progress = several._progress(running, 2, [])
    assert progress.splitlines() == [
        "0 ended, 2 running, 2 waiting, about 4 min left",
        "  a, seed 0: GRPO step 10/20, accuracy 0.375, 2 min left",
        "  b, seed 0: GRPO step 10/20, accuracy 0.375, 2 min left",
    ]
    (tmp_path / "b" / "metrics.jsonl").unlink()
    head, _, other = several._progress(running, 0, [60.0]).splitlines()
    assert head == "1 ended, 2 running, 0 waiting"
    assert other == "  b, seed 0: starting"


@pytest.mark.slow
def test_a_run_that_fails_or_diverges_does_not_stop_the_others(tiny_model_folder, tmp_path):
    variants = {
        "good": {},
        "without a model": {"model_name_or_path": "./later"},
        "wild": {"learning_rate": 1e30},
    }
    path = write_experiment(tmp_path, tiny_model_folder, variants=variants, minutes=2)
    plan = make_plan(read_experiment(path), "runs")
    slots = make_slots([], 2, 0)
    assert "3 of 3 runs to do below runs/small, 2 at a time: about 0.1 hours" in plan_text(
        plan, slots
    )
    said: list[str] = []
    Sweep([plan, plan], slots, said.append).run()  # what two plans ask for is run once
    good, failed, diverged = plan.runs
    assert statuses(plan) == {"good": "finished", "without a model": "failed", "wild": "diverged"}
    assert sum("started" in line for line in said) == 3
    assert len(read_metrics(good.folder)) == 3 + 4 + 1  # validations, updates, summary
    reason = run_state(failed.folder).reason
    assert reason.startswith(
        "exit status 1, grpo.py: error: model_name_or_path: there is no folder"
    )
    assert "at update 2" in run_state(diverged.folder).reason
    assert [line for line in said if line.startswith("[3/3]")]
    assert any("without a model, seed 3: failed in" in line and "./later" in line for line in said)

    text = plan_text(plan, slots)
    assert "1 of 3 runs to do" in text
    assert "(by finished runs)" in text
    report = report_plan(plan, tmp_path / "report")
    assert "without a model, seed 3: failed (exit status 1" in report
    assert (tmp_path / "report" / "report.html").is_file()

    # What failed is tried again; the others are left as they are.
    shutil.copytree(tiny_model_folder, "later")
    before = (good.folder / "metrics.jsonl").read_text()
    said.clear()
    Sweep([plan], slots, said.append).run()
    assert sum("started" in line for line in said) == 1
    assert statuses(plan)["without a model"] == "finished"
    assert (good.folder / "metrics.jsonl").read_text() == before
    attempts = json.loads((failed.folder / "attempts.json").read_text())
    assert [attempt["outcome"] for attempt in attempts] == ["failed", "finished"]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_where_it_was(tiny_model_folder, tmp_path):
    path = write_experiment(
        tmp_path,
        tiny_model_folder,
        settings={"n_grpo_steps": 40, "eval_every": 40, "save_every": 8},
    )
    (run,) = make_plan(read_experiment(path), "runs/experiments").runs
    command = [sys.executable, "-m", "trl_r1zero.cli", "sweep", str(path)]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(run.folder.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    sweep.send_signal(signal.SIGINT)  # somebody is impatient: the run is ended all the same
    told, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "Ending 1 run" in told
    assert "Interrupted; the same command goes on." in told
    assert run_state(run.folder).status == "stopped"
    lock = _locked(run.folder)  # nobody is left who works on it
    assert lock is not None
    lock.close()
    updates = max(line["step"] for line in read_metrics(run.folder))
    assert updates < 80

    assert main([str(path)]) == 0  # the same again, in this process: a start less to wait for
    assert run_state(run.folder).status == "finished"
    steps = [line["step"] for line in read_metrics(run.folder) if "loss" in line]
    assert steps == list(range(1, 81))
    attempts = json.loads((run.folder / "attempts.json").read_text())
    assert [attempt["outcome"] for attempt in attempts] == ["stopped", "finished"]
    assert (Path("runs/experiments/small/reports/experiment") / "report.md").is_file()


def test_the_lock_of_a_run_lives_as_long_as_its_process(tmp_path):
    lock = _locked(tmp_path)
    assert _locked(tmp_path) is None
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.fileno(),))
    lock.close()  # as if the sweep had been killed
    assert _locked(tmp_path) is None
    child.kill()
    child.wait()
    assert _locked(tmp_path) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "cannot read the recipe"),
        (["experiment.yaml", "--scale", "big"], "unknown scale 'big'"),
        (["experiment.yaml", "--devices", "0,0"], "a GPU belongs to one run at a time"),
        (["experiment.yaml", "--devices", "0,1"], "got 0,1 for a run"),
    ],
)
def test_a_wrong_command_line_is_an_error_in_words(tmp_path, arguments, message, capsys):
    write_experiment(tmp_path, tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_runs_nothing(tmp_path, capsys):
    path = write_experiment(tmp_path, tmp_path, grid={"group_size": [4, 8]}, minutes=30, gpus=2)
    assert main([str(path), "--dry-run", "--seeds", "0", "1", "--devices", "0,1", "2,3"]) == 0
    told = capsys.readouterr().out
    assert "Which one?" in told
    assert "| group_size 8 | 0, 1  | 2 missing | 30.0         |" in told
    assert "4 of 4 runs to do below runs/experiments/small, 2 at a time: about 1.0 hours" in told
    assert "4.0 GPU hours (by the experiment's file)." in told
    assert not Path("runs").exists()


def test_a_seed_twice_on_the_command_line_is_an_error(tmp_path, capsys):
    path = write_experiment(tmp_path, Path("model"))
    assert main([str(path), "--seeds", "0", "0", "--dry-run"]) == 2
    assert "seeds: got 0, 0; give each of them once" in capsys.readouterr().err


def test_two_runs_of_one_folder_are_an_error(tmp_path):
    """A run's folder has its base recipe's name, and both recipes have the same one."""
    plans = []
    for name, learning_rate in (("a", 1e-4), ("b", 9e-4)):
        (tmp_path / name).mkdir()
        path = write_experiment(tmp_path / name, Path("model"))
        recipe = tmp_path / name / "grpo.yaml"
        values = {**yaml.safe_load(recipe.read_text()), "learning_rate": learning_rate}
        recipe.write_text(yaml.safe_dump(values))
        plans.append(make_plan(read_experiment(path), "runs"))
    with pytest.raises(ValueError, match="learning_rate: 9e-4 there, 1e-4 here"):
        Sweep(plans, make_slots([], 1, 0))
    paths = [str(plan.experiment.path) for plan in plans]
    assert main([*paths, "--dry-run"]) == 2


def test_experiments_of_one_name_are_an_error(tmp_path, capsys):
    first = write_experiment(tmp_path, Path("model"))
    (tmp_path / "other").mkdir()
    second = write_experiment(tmp_path / "other", Path("model"))
    assert main([str(first), str(second), "--dry-run"]) == 2
    assert "have one name" in capsys.readouterr().err
    assert main([str(first), str(first), "--dry-run"]) == 0
