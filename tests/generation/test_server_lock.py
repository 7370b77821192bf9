"""A server that somebody trains with is nobody else's, until that process is gone."""

import os
import subprocess
import sys

import pytest
from launching import run_here
from stub_vllm import StubServer
from tiny_grpo import make_trainer

from trl_r1zero import cli
from trl_r1zero.generation.server_lock import weights_held
from trl_r1zero.generation.vllm_server import VLLMServerError

RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 16},
    "n_grpo_steps": 1,
    "rollout_batch_size": 8,
    "group_size": 4,
    "train_batch_size": 8,
    "max_completion_length": 8,
    "eval_every": None,
    "use_vllm": True,
    "vllm_check_syncs": 0,
    "use_cpu": True,
    "report_to": "none",
}
OWNER = """
import sys, time
from trl_r1zero.generation.server_lock import weights_held

with weights_held(sys.argv[1]):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def server():
    server = StubServer()
    yield server
    server.close()


@pytest.fixture
def owner(server):
    command = [sys.executable, "-c", OWNER, server.base_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_the_second_trainer_is_refused_and_told_who_has_the_server(
    server, owner, tiny_model_folder, tmp_path, capsys
):
    recipe = {**RECIPE, "vllm_server_base_url": f"{server.base_url}/v1"}
    with pytest.raises(SystemExit, match="2"):
        run_here(recipe, tmp_path / "run", tiny_model_folder)
    told = capsys.readouterr().err
    assert f"serves one trainer at a time, and process {owner.pid} on " in told
    assert "trains with it and replaces its weights; wait for its end" in told
    arguments = {"backend": "vllm_server", "server_url": server.base_url, "model": "stub"}
    keys = {**arguments, "task": "chain_arithmetic", "output_dir": tmp_path / "evaluation"}
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", *(f"--{key}={value}" for key, value in keys.items())])
    assert f"process {owner.pid} on " in capsys.readouterr().err
    assert server.requests == []  # and nothing was done to it
    owner.kill()
    owner.wait()
    run_here(recipe, tmp_path / "run", tiny_model_folder)
    assert "/update_weights" in server.requests


def test_the_names_of_this_machine_are_one(owner, server):
    port = server.base_url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]"):
        with (
            pytest.raises(VLLMServerError, match=f"process {owner.pid} "),
            weights_held(f"http://{host}:{port}"),
        ):
            pass
    with weights_held("http://gpu-7:8000"), weights_held("http://gpu-7:8000"):  # one process
        assert os.getpid()


def test_a_trainer_that_has_trained_lets_others_have_its_server(server, tokenizer, tmp_path):
    """Though it still lives, as in a notebook."""
    settings = {"vllm_server_base_url": server.base_url, "use_vllm": True, "vllm_check_syncs": 0}
    trainer = make_trainer(tokenizer, tmp_path / "run", **settings)
    code = "import sys; from trl_r1zero.generation.server_lock import weights_held\n"
    code += "with weights_held(sys.argv[1]): print('has it')"

    def other() -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, server.base_url]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert f"process {os.getpid()} on " in other().stderr
    trainer.train()
    assert other().stdout == "has it\n"
