"""A run on two machines, and one whose vLLM server is on a third: the numbers of one machine."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def launch_on(
    on: list[Machine],
    recipe: dict,
    folder: Path,
    model: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """Run the recipe on these machines; what the first one printed."""
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
        meanwhile()
        outputs = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return outputs[0]


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
def server_on(machine: Machine, model: Path, log: Path) -> Iterator[subprocess.Popen]:
    """A vLLM server that starts there; a run waits until it is ready."""
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
            yield process
        finally:
            kill(process)


def test_vllm_servers_on_other_machines_one_of_which_is_lost(served_model_folder, tmp_path):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm")
    folders = [tmp_path / "one", tmp_path / "two"]
    with (
        machines(3) as (first, second, third),
        server_on(second, served_model_folder, tmp_path / "second.log") as lost,
        server_on(third, served_model_folder, tmp_path / "third.log"),
    ):
        recipe = {
            **RECIPE,
            "reward": "launch_rewards.many_digits",
            "n_grpo_steps": 4,
            "use_vllm": True,
            "vllm_server_timeout": 600,
            "vllm_server_base_url": [f"http://{m.address}:8123" for m in (second, third)],
            "save_every": None,
            "report_to": "none",
        }

        def lose_one() -> None:
            metrics = folders[1] / "metrics.jsonl"
            while not (metrics.exists() and '"loss"' in metrics.read_text()):
                time.sleep(0.05)
            kill(lost)

        launch_on([first], recipe, folders[0], served_model_folder)
        said = launch_on([first, second], recipe, folders[1], served_model_folder, lose_one)
    assert f"the vLLM server at http://{second.address}:8123 is left out" in said
    assert_same_numbers(folders[1], folders[0], 1e-5)
    lines = read_metrics(folders[1])
    # The servers have the trainer's weights at every step.
    assert max(line.get("sampler_log_prob_diff/mean", 0) for line in lines) < 5e-3
