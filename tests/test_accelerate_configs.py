"""Every file of accelerate_configs is read with accelerate's own code, and cpu.yaml launches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from trl_r1zero.devices import DeviceFacts, MachineFacts, place, visible_devices
from trl_r1zero.devices.facts import visible_here
from trl_r1zero.generation import vllm_server
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig

CONFIG_DIRECTORY = Path(__file__).parent.parent / "accelerate_configs"

# Per file: the kind of launch, processes, machines.
EXPECTED = {
    "cpu": ("MULTI_GPU", 1, 1),
    "single_gpu": ("NO", 1, 1),
    "two_gpu": ("NO", 1, 1),
    "multi_gpu": ("MULTI_GPU", 8, 1),
    "zero2": ("DEEPSPEED", 8, 1),
    "zero3": ("DEEPSPEED", 8, 1),
    "fsdp2": ("FSDP", 8, 1),
    "multi_node": ("MULTI_GPU", 16, 2),
}


def launch_args(name: str, *more: str):
    path = str(CONFIG_DIRECTORY / f"{name}.yaml")
    args = launch_command_parser().parse_args(["--config_file", path, *more, "script.py"])
    return _validate_launch_command(args)[0]


def test_every_config_file_is_expected():
    assert {path.stem for path in CONFIG_DIRECTORY.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_parses(name):
    config = load_config_from_file(str(CONFIG_DIRECTORY / f"{name}.yaml"))
    assert (
        config.distributed_type.value,
        config.num_processes,
        config.num_machines,
    ) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_config_reaches_the_launcher(name):
    args = launch_args(name)
    kind, num_processes, num_machines = EXPECTED[name]
    assert args.num_processes == num_processes
    assert args.multi_gpu == (kind == "MULTI_GPU")
    assert args.use_deepspeed == (kind == "DEEPSPEED")
    assert args.use_fsdp == (kind == "FSDP")
    if num_machines > 1:
        assert args.num_machines == num_machines
    # The recipe's `bf16` is the one setting of the precision: a value here would win over it.
    assert args.mixed_precision == "no"


@pytest.mark.parametrize("name", EXPECTED)
def test_nested_keys_are_launcher_arguments(name):
    """accelerate copies nested keys to its arguments without a look at their names."""
    known = vars(launch_command_parser().parse_args(["script.py"]))
    content = yaml.safe_load((CONFIG_DIRECTORY / f"{name}.yaml").read_text(encoding="utf-8"))
    nested = [key for value in content.values() if isinstance(value, dict) for key in value]
    assert [key for key in nested if key not in known] == []
    assert "gradient_accumulation_steps" not in nested


def test_zero_stages_and_fsdp_version():
    assert launch_args("zero2").zero_stage == 2
    assert launch_args("zero3").zero_stage == 3
    assert launch_args("fsdp2").fsdp_version == 2


def test_command_line_overrides_the_number_of_processes():
    assert launch_args("cpu", "--num_processes", "2").num_processes == 2


# Who gets which device


def environment_of_processes(args) -> dict[str, str]:
    """What accelerate's launcher of this kind gives to the processes that it starts."""
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # which is of no matter here
        return prepare_deepspeed_cmd_env(args)[1]
    if args.multi_gpu or args.use_fsdp:
        return prepare_multi_gpu_env(args)
    return prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize("variable", [None, "4,5", "GPU-8932f937,GPU-1b2c3d4e", "6,7,-1", "", "0"])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_user_s_devices_reach_the_processes(name, variable, monkeypatch):
    """A run on physical GPUs 4 and 5 never lands on somebody else's 0 and 1."""
    set_visible(monkeypatch, variable)
    more = ["--main_process_port", "0"] if EXPECTED[name][2] == 1 else ["--machine_rank", "1"]
    environment = environment_of_processes(launch_args(name, *more))
    assert environment.get("CUDA_VISIBLE_DEVICES") == variable


def set_visible(monkeypatch, variable: str | None) -> None:
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)


@pytest.mark.parametrize(
    ("config", "variable", "count", "arguments", "settings", "trainers", "server"),
    [
        ("two_gpu", "4,5", 2, (), {}, ["4"], "5"),
        ("two_gpu", "4,5", 2, (), {"devices": "1"}, ["4"], "5"),
        ("two_gpu", None, 2, (), {}, ["0"], "1"),
        ("two_gpu", "GPU-aa,GPU-bb", 2, (), {}, ["GPU-aa"], "GPU-bb"),
        ("single_gpu", "6", 1, (), {}, ["6"], "6"),
        ("single_gpu", "6,7", 2, (), {"devices": 0}, ["6"], "6"),
        ("multi_gpu", "3,4,5,6,7", 5, ("--num_processes", "4"), {}, ["3", "4", "5", "6"], "7"),
        ("zero2", "7,6,5", 3, ("--num_processes", "2"), {}, ["7", "6"], "5"),
        ("fsdp2", "2,3", 2, ("--num_processes", "2"), {}, ["2", "3"], "2"),
        (
            "zero3",
            "4,5,6,7",
            4,
            ("--num_processes", "2"),
            {"tensor_parallel_size": 2},
            ["4", "5"],
            "6,7",
        ),
    ],
)
def test_trainers_and_their_server_from_the_launch_on(
    config, variable, count, arguments, settings, trainers, server, monkeypatch
):
    """Launcher, trainer, server: the variable of each, by the code that makes it."""
    set_visible(monkeypatch, variable)
    args = launch_args(config, "--main_process_port", "0", *arguments)
    # In the first of the processes:
    for key, value in environment_of_processes(args).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr(vllm_server, "version", lambda name: "0.31.0")
    facts = MachineFacts((DeviceFacts(80 * 2**30),) * count, visible_here())
    own, placement = resolve_server(
        VLLMServerConfig.from_settings(settings),
        facts,
        TrainerFacts(
            num_trainers=args.num_processes,
            trainer_on_cuda=True,
            server_on_cuda=True,
            trainer_bytes=2**30,
        ),
    )
    assert [facts.visible.names[number] for number in placement.trainers] == trainers
    assert VLLMServer("m", own).environment()["CUDA_VISIBLE_DEVICES"] == server


def test_gpu_ids_of_somebody_s_own_are_told_of(monkeypatch):
    """It hides the other GPUs from the run: an error, and not somebody else's GPU 1."""
    set_visible(monkeypatch, "4,5")
    environment = environment_of_processes(launch_args("two_gpu", "--gpu_ids", "4"))
    visible = visible_devices(environment, 1)
    with pytest.raises(
        ValueError, match=r"no device '1': this run sees 1 GPU .*gpu_ids, remove it"
    ):
        place(
            visible, num_trainers=1, trainer_on_cuda=True, server_on_cuda=True, server_devices="1"
        )


@pytest.mark.parametrize("name", EXPECTED)
def test_no_file_chooses_devices(name):
    text = (CONFIG_DIRECTORY / f"{name}.yaml").read_text(encoding="utf-8")
    assert "gpu_ids" not in yaml.safe_load(text)
    assert "--gpu_ids" not in text


SUM_OF_RANKS = """
import torch
from accelerate import PartialState
from torch import distributed

state = PartialState(cpu=True)
ranks = torch.tensor([state.process_index + 1])
distributed.all_reduce(ranks)
state.print(f"device={state.device.type} processes={state.num_processes} sum={ranks.item()}")
state.destroy_process_group()
"""


# Ranks 0 .. n-1 contribute 1 .. n: the sum shows that the processes really talk to one another.
@pytest.mark.parametrize(("num_processes", "total"), [(1, 1), (2, 3)])
def test_cpu_config_launches(tmp_path, num_processes, total):
    script = tmp_path / "sum_of_ranks.py"
    script.write_text(SUM_OF_RANKS, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIG_DIRECTORY / "cpu.yaml")),
        *("--num_processes", str(num_processes), str(script)),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"device=cpu processes={num_processes} sum={total}" in done.stdout
