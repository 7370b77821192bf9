"""A run on two machines, and one whose vLLM server is on a third: the numbers of one machine."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from launching import command, kill, run_here
from machines import Machine, machines
from test_launch import RECIPE
from tiny_models import REPOSITORY

from trl_r1zero.trainers import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PORT = 29517
COMPARED = ("loss", "grad_norm", "reward", "entropy", "length/mean", "clip_fraction")


def multi_node_file(folder: Path, num_machines: int) -> Path:
    """accelerate_configs/multi_node.yaml for machines without GPUs, of one process each."""
    config = yaml.safe_load((REPOSITORY / "accelerate_configs" / "multi_node.yaml").read_text())
    sizes = {"use_cpu": True, "num_machines": num_machines, "num_processes": num_machines}
    path = folder / "multi_node.yaml"
    path.write_text(yaml.safe_dump({**config, **sizes}))
    return path


def launch_on(on: list[Machine], recipe: dict, folder: Path, model: Path) -> None:
    """Run the recipe on these machines."""
    config = multi_node_file(folder.parent, len(on))
    running = []
    for rank, machine in enumerate(on):
        its = command(recipe, folder, model, (), len(on), "grpo.py", config)
        where = ["--machine_rank", str(rank), "--main_process_ip", on[0].address]
        script = its["args"].index(str(REPOSITORY / "recipes" / "grpo.py"))
        its["args"][script:script] = [*where, "--main_process_port", str(PORT)]
        its["args"] = machine.command(its["args"])
        running.append(subprocess.Popen(**its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        outputs = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]


def assert_same_numbers(run: Path, expected: Path, tolerance: float) -> None:
    for name in COMPARED:
        columns = [
            [line[name] for line in read_metrics(folder) if name in line]
            for folder in (run, expected)
        ]
        assert columns[0] == pytest.approx(columns[1], rel=1e-4, abs=tolerance), name


def test_two_machines_give_the_losses_of_one(tiny_model_folder, tmp_path):
    run_here(RECIPE, tmp_path / "one", tiny_model_folder)
    with machines(2) as two:
        launch_on(two, RECIPE, tmp_path / "two", tiny_model_folder)
    assert_same_numbers(tmp_path / "two", tmp_path / "one", 1e-5)


@contextmanager
def server_on(machine: Machine, model: Path, log: Path) -> Iterator[str]:
    """The address of a vLLM server that starts there; a run waits until it is ready."""
    words = [sys.executable, "-m", "trl_r1zero", "serve", str(model), "--host", machine.address]
    words += ["--port", "8123", "--weight_transfer", "gloo", "--dtype", "float32"]
    with log.open("w") as output:
        process = subprocess.Popen(
            machine.command([*words, "--max_model_len", "256"]),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield f"http://{machine.address}:8123"
        finally:
            kill(process)


def test_the_vllm_server_may_be_on_a_third_machine(served_model_folder, tmp_path):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm")
    recipe = {**RECIPE, "reward": "launch_rewards.many_digits", "use_vllm": True}
    recipe |= {"vllm_server_timeout": 600, "save_every": None, "report_to": "none"}
    with (
        machines(3) as (first, second, third),
        server_on(third, served_model_folder, tmp_path / "server.log") as url,
    ):
        recipe["vllm_server_base_url"] = url
        launch_on([first], recipe, tmp_path / "one", served_model_folder)
        launch_on([first, second], recipe, tmp_path / "two", served_model_folder)
    assert_same_numbers(tmp_path / "two", tmp_path / "one", 1e-5)
    differences = [
        line["sampler_log_prob_diff/mean"]
        for line in read_metrics(tmp_path / "two")
        if "sampler_log_prob_diff/mean" in line
    ]
    # The server has the trainer's weights at every step.
    assert max(differences) < 5e-3
