"""The users' commands `accelerate launch recipes/sft.py` and `recipes/expert_iteration.py`."""

import json
import time
from pathlib import Path

import pytest
import yaml
from launching import kill, launch, start

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.traces import load_traces
from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.kept_rollouts import read_kept

pytestmark = pytest.mark.slow

TASK_ARGS = {"num_train": 64, "num_validation": 32}
COMMON = {
    "task": "chain_arithmetic",
    "task_args": TASK_ARGS,
    "reward": "launch_rewards.many_digits",
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-2,
    "seed": 3,
}
SFT = {
    **COMMON,
    "train_batch_size": 12,
    "num_train_epochs": 3,
    "eval_every": 8,
    "eval_max_completion_length": 16,
    "save_every": 8,
    "append_eos": True,
    "fix_whitespace": True,
    "num_examples": 60,
    "report_to": "tensorboard",
}
EI = {
    **COMMON,
    "n_ei_steps": 3,
    "ei_batch_size": 16,
    "group_size": 8,
    "sft_epochs_per_step": 3,
    "train_batch_size": 8,
    "max_completion_length": 16,
    "save_every_updates": 2,
}


def column(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> Path:
    """Rows of prompt and response. Of ten one is twice there, and one has its tags on two lines."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    prompt = load_prompt("chain_arithmetic")
    rows = []
    for number, example in enumerate(get_task("chain_arithmetic", **TASK_ARGS).load()):
        between = "\n" if number % 10 == 0 else " "
        row = {
            "prompt": prompt.format(example.question),
            "response": f" 1 2 3 4 </think>{between}<answer> {number} </answer>",
            "ground_truth": example.ground_truth,
        }
        rows += [row] * (2 if number % 10 == 1 else 1)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def one_process(traces, tiny_model_folder, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("launch") / "one"
    done = launch({**SFT, "train_data": str(traces)}, folder, tiny_model_folder, script="sft.py")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout


def test_a_launched_sft_run_learns_and_leaves_everything_on_disk(one_process):
    folder, stdout = one_process
    accuracies = column(folder, "eval_accuracy")
    assert accuracies[0] < 0.3
    assert accuracies[-1] > 0.7
    nlls = column(folder, "nll")
    assert len(nlls) == 18  # 60 to 67 rows: 6 train batches, the last one short, three times
    assert nlls[-1] < nlls[0] / 3
    for name in (
        "data_report.md",
        "data_report.json",
        "metrics.jsonl",
        "recipe.yaml",
        "environment.json",
        "report.md",
        "curve.png",
        "final/model.safetensors",
        "final/tokenizer.json",
        "best/best.json",
        "checkpoint-18/optimizer.pt",
        "evaluations/train_step_00018.md",
    ):
        assert (folder / name).is_file(), name
    assert list(folder.glob("**/events.out.tfevents*")), "TensorBoard's file is missing"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["max_length"] == 1024
    assert "accuracy" in stdout


def test_the_data_doctor_speaks_at_the_start(one_process):
    folder, stdout = one_process
    facts = json.loads((folder / "data_report.json").read_text())
    assert facts["sizes"]["read"] == {"rows": 71, "questions": 64}
    assert facts["sizes"]["fix_whitespace"]["changed"] == 7
    chosen = facts["sizes"]["num_examples"]
    assert chosen["questions"] == 60
    assert facts["findings"]["wrong_whitespace"]["rows"] == 0
    assert facts["findings"]["duplicates"]["rows"] == chosen["rows"] - 60 > 0
    assert "fix_whitespace" in stdout
    assert "the prompt and response of an earlier row again" in stdout


def test_two_processes_give_the_losses_of_one(one_process, traces, tiny_model_folder, tmp_path):
    folder, _ = one_process
    two = tmp_path / "two"
    recipe = {**SFT, "train_data": str(traces)}
    done = launch(recipe, two, tiny_model_folder, script="sft.py", processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "nll", "entropy", "grad_norm", "length/mean", "num_tokens"):
        # Errors grow from update to update, at a learning rate of 1e-2.
        assert column(two, name)[:6] == pytest.approx(column(folder, name)[:6], rel=1e-4), name
    assert column(two, "eval_accuracy")[-1] > 0.7


# Expert iteration


@pytest.fixture(scope="module")
def one_ei_process(tiny_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch_ei") / "one"
    done = launch(EI, folder, tiny_model_folder, script="expert_iteration.py")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "EI step" in done.stdout
    return folder


def test_a_launched_ei_run_learns_and_leaves_everything_on_disk(one_ei_process):
    accuracies = column(one_ei_process, "eval_accuracy")
    assert len(accuracies) == 4
    assert accuracies[-1] > accuracies[0] + 0.3
    assert column(one_ei_process, "rollout_accuracy")[-1] > accuracies[0] + 0.2
    for name in (
        "report.md",
        "curve.png",
        "final/model.safetensors",
        "best/best.json",
        "expert_iteration/ei_step_00003.jsonl",
        "rollouts/ei_step_00001.md",
        "evaluations/ei_step_00003.md",
    ):
        assert (one_ei_process / name).is_file(), name


def test_two_processes_keep_the_rollouts_of_one(one_ei_process, tiny_model_folder, tmp_path):
    two = tmp_path / "two"
    done = launch(EI, two, tiny_model_folder, script="expert_iteration.py", processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_kept(two, 1) == read_kept(one_ei_process, 1)
    updates = len(
        [line for line in read_metrics(two) if line.get("ei_step") == 1 and "nll" in line]
    )
    for name in ("loss", "nll", "entropy", "grad_norm"):
        assert column(two, name)[:updates] == pytest.approx(
            column(one_ei_process, name)[:updates], rel=1e-3, abs=1e-5
        ), name
    for name in ("rollout_accuracy", "rollout_pass@8", "rollout_kept_share"):
        assert column(two, name)[0] == column(one_ei_process, name)[0]
    assert column(two, "eval_accuracy")[-1] > 0.6


def test_two_processes_stay_in_step_without_a_correct_rollout(tiny_model_folder, tmp_path):
    folder = tmp_path / "none"
    done = launch(
        {**EI, "reward": "launch_rewards.never", "n_ei_steps": 2},
        folder,
        tiny_model_folder,
        script="expert_iteration.py",
        processes=2,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert column(folder, "rollout_kept") == [0, 0]
    assert "none of 128 rollouts is correct" in done.stderr
    assert (folder / "final" / "model.safetensors").is_file()


def test_a_killed_ei_run_goes_on_to_the_same_curve(one_ei_process, tiny_model_folder, tmp_path):
    """kill -9 inside of an EI step, and the user's own command to go on."""
    folder = tmp_path / "killed"
    process = start(EI, folder, tiny_model_folder, script="expert_iteration.py")
    try:
        while process.poll() is None and not (folder / "checkpoint-4").is_dir():
            time.sleep(0.05)
    finally:
        kill(process)
    arguments = ("--resume_from_checkpoint", "last")
    done = launch(EI, folder, tiny_model_folder, *arguments, script="expert_iteration.py")
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "nll", "grad_norm", "eval_accuracy", "rollout_kept", "num_tokens"):
        assert column(folder, name) == column(one_ei_process, name), name


def test_kept_rollouts_are_traces_for_sft(one_ei_process):
    task = get_task("chain_arithmetic", **TASK_ARGS)
    path = one_ei_process / "expert_iteration" / "ei_step_00003.jsonl"
    traces = load_traces(task, load_prompt("chain_arithmetic"), str(path))
    kept = read_kept(one_ei_process, 3)
    assert [trace.response for trace in traces] == [rollout.response for rollout in kept]
    assert [trace.prompt for trace in traces] == [rollout.prompt for rollout in kept]
