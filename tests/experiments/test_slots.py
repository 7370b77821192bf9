"""Where runs run: slots of a command line, and the command that each starts."""

import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import REPOSITORY

from trl_r1zero.devices import visible_devices
from trl_r1zero.experiments.experiment import read_experiment
from trl_r1zero.experiments.plan import Slot, launch_command, make_plan, make_slots


def test_places_without_devices():
    assert make_slots([], 2, gpus=2) == [Slot(0), Slot(1)]


def test_groups_of_gpus():
    assert make_slots(["0,1", "2,3"], 1, gpus=2) == [Slot(0, ("0", "1")), Slot(1, ("2", "3"))]
    assert make_slots(["3"], 1, gpus=0) == [Slot(0, ("3",))]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (["0"], "got 0 for a run, but at this scale one takes 2"),
        (["0,1", "1,2"], "a GPU belongs to one run at a time"),
        (["cuda:0,1"], "expected indices such as 0,1 2,3"),
    ],
)
def test_wrong_devices(devices, message):
    with pytest.raises(ValueError, match=message):
        make_slots(devices, 1, gpus=2)


def command_of(tmp_path: Path, recipe: dict, slot: Slot, **scale) -> list[str]:
    base = {"model_name_or_path": "model", "output_dir": "unused", "task": "chain_arithmetic"}
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump({**base, **recipe}))
    script = REPOSITORY / "recipes" / "grpo.py"
    scale = {"recipe": "grpo.yaml", "seeds": [0], **scale}
    path = tmp_path / "e.yaml"
    path.write_text(
        yaml.safe_dump({"question": "?", "script": str(script), "scales": {"small": scale}})
    )
    experiment = read_experiment(path)
    return launch_command(experiment, make_plan(experiment, "runs").runs[0], slot)


def test_a_run_without_devices_is_launched_as_one_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_of(tmp_path, {}, Slot(0)) == [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        str(REPOSITORY / "recipes" / "grpo.py"),
        "--config",
        "grpo.yaml",
        "--seed=0",
        "--output_dir=runs/small/grpo/base-seed_0",
        "--resume_from_checkpoint=auto",
    ]


@pytest.mark.parametrize(
    ("gpus", "server", "processes", "devices"),
    [
        (2, {"devices": "1", "max_model_len": 256}, 1, "1"),
        (4, {"devices": "1", "max_model_len": 256}, 3, "3"),
        (4, {"devices": "2,3", "tensor_parallel_size": 2, "max_model_len": 256}, 2, "2,3"),
        (1, {"devices": "0", "max_model_len": 256}, 1, "0"),  # one GPU is for both
        (2, {"max_model_len": 256}, 1, None),  # decided where the run starts
        (4, {"tensor_parallel_size": 2, "max_model_len": 256}, 2, None),
        (1, {"max_model_len": 256}, 1, None),
    ],
)
def test_the_server_gets_the_slot_s_last_gpus(tmp_path, gpus, server, processes, devices):
    recipe = {
        "use_vllm": True,
        "vllm_server": server,
        "train_batch_size": 12,
        "gradient_accumulation_steps": 1,
        "rollout_batch_size": 12,
        "group_size": 2,
    }
    config = "two_gpu.yaml"
    (tmp_path / config).write_text("")
    slot = Slot(1, tuple("4567"[:gpus]))
    command = command_of(tmp_path, recipe, slot, accelerate_config=config, gpus=gpus)
    assert command[command.index("--config_file") + 1].endswith(config)
    assert "--gpu_ids" not in command
    assert command[command.index("--num_processes") + 1] == str(processes)
    assert ("--main_process_port" in command) == (processes > 1)
    own = [word for word in command if word.startswith("--vllm_server=")]
    if devices is None:
        assert own == []
        return
    # Numbers within what the slot makes visible.
    assert yaml.safe_load(own[0].partition("=")[2]) == {**server, "devices": devices}


def test_without_a_server_the_trainer_gets_all(tmp_path):
    command = command_of(tmp_path, {}, Slot(0, ("4", "5")))
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("--main_process_port") + 1] == "0"
    assert not any(word.startswith("--vllm_server") for word in command)


@pytest.mark.parametrize(
    ("variable", "count", "gpus", "physical"),
    [
        (None, 8, ("2", "3"), "2,3"),
        ("4,5,6,7", 4, ("2", "3"), "6,7"),
        ("GPU-aa,GPU-bb", 2, ("1",), "GPU-bb"),
    ],
)
def test_a_slot_s_gpus_are_some_of_the_user_s(variable, count, gpus, physical):
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    visible = visible_devices(environment, count)
    assert Slot(0, gpus).environment(visible) == {"CUDA_VISIBLE_DEVICES": physical}
    assert Slot(0).environment(visible) == {}


def test_a_gpu_that_is_not_there():
    visible = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"}, 2)
    with pytest.raises(ValueError, match="no device '4': this run sees 2 GPUs"):
        Slot(0, ("4", "5")).environment(visible)


def test_accelerate_starts_one_process_and_leaves_the_variable(tmp_path, monkeypatch):
    """What accelerate itself makes of the command and the environment, of four GPUs."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    slot = Slot(0, ("2",))
    command = command_of(tmp_path, {}, slot)
    for name, value in slot.environment(visible_devices({}, 4)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(launch, "is_cuda_available", lambda: True, raising=False)
    args = launch.launch_command_parser().parse_args(command[3:])
    args, _, _ = launch._validate_launch_command(args)
    assert (args.num_processes, args.multi_gpu) == (1, False)
    _, environment = prepare_simple_launcher_cmd_env(args)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2"
