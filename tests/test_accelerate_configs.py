"""Every file of accelerate_configs is read with accelerate's own code, and cpu.yaml launches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

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
    # The recipe's `bf16` is the one knob for the precision: a value here would win over it.
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
