"""A vLLM server's command line, and how real ones start, fail and end."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm"
)


def make_server(**settings) -> VLLMServer:
    server = VLLMServer("some/model", VLLMServerConfig(**settings), log_path=Path("server.log"))
    server.port = 4000
    return server


def flags(server: VLLMServer) -> dict[str, str | None]:
    words = server.command()
    assert words[words.index("serve") + 1] == "some/model"
    return {
        name: value or None
        for name, _, value in (w.partition("=") for w in words if w.startswith("--"))
    }


def test_the_flags_are_those_that_training_needs():
    found = flags(make_server(weight_transfer="gloo", max_model_len=128))
    assert found["--host"] == "127.0.0.1"
    assert found["--port"] == "4000"
    assert found["--max-model-len"] == "128"
    assert found["--logprobs-mode"] == "processed_logprobs"
    assert found["--generation-config"] == "vllm"
    assert json.loads(found["--weight-transfer-config"]) == {"backend": "gloo"}
    assert make_server(weight_transfer="gloo").environment()["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_server_that_takes_no_weights_keeps_its_endpoints_closed(monkeypatch):
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    server = make_server(weight_transfer="none", extra_args=["--seed", "3"])
    assert "--weight-transfer-config" not in flags(server)
    assert "VLLM_SERVER_DEV_MODE" not in server.environment()
    assert server.command()[-2:] == ["--seed", "3"]


def test_what_a_launcher_set_for_the_trainer_does_not_reach_the_server(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_PLUGINS", "somebody_elses")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment = make_server(devices="1", cpu_threads=3).environment()
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"}
    assert not launched & set(environment)
    assert environment["VLLM_PLUGINS"] == "somebody_elses,trl_r1zero_gloo"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_length": 5}, r"'max_model_length' is no setting .* 'max_model_len'"),
        ({"max_model_len": "5"}, r"max_model_len must be int or none, got '5'"),
        ({"port": 0}, r"port must be between 1 and 65535, got 0"),
        ({"weight_transfer": "mpi"}, r"weight_transfer must be one of auto, nccl, gloo, none"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"cpu_threads": 0}, r"cpu_threads must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMServerConfig.from_settings(settings)


def test_a_server_that_cannot_start_says_why(tmp_path):
    config = VLLMServerConfig(host="0.0.0.0", extra_args=["--no-such-flag"])
    server = VLLMServer("some/model", config, log_path=tmp_path / "server.log")
    with (
        pytest.warns(UserWarning, match="whoever reaches it can replace its weights"),
        pytest.raises(VLLMServerError) as error,
    ):
        server.start()
    assert "did not start" in str(error.value)
    assert "--no-such-flag" in str(error.value)
    assert "`vllm serve --help=all` lists its flags" in str(error.value)
    assert str(tmp_path / "server.log") in str(error.value)
    assert not server.is_alive()


_STARTS_ONE = """
import os, sys
from pathlib import Path
from trl_r1zero.generation import vllm_server
# Instead of vLLM a tree of processes, one of them in a session of its own.
tree = "sleep 300 & setsid sleep 300 & echo ready; wait"
vllm_server.VLLMServer.command = lambda self: ["bash", "-c", tree]
server = vllm_server.VLLMServer("model", log_path=Path(sys.argv[1]))
server.port = 1
server._spawn()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_all_of_a_servers_processes_end_with_their_starter(how, tmp_path):
    log = tmp_path / "server.log"
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTS_ONE, str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    supervisor = psutil.Process(int(starter.stdout.readline()))
    deadline = time.monotonic() + 30
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = [supervisor, *supervisor.children(recursive=True)]
    assert len(family) == 4
    if how == "kill":
        starter.kill()
    else:
        starter.stdin.close()
    starter.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []


def test_a_real_server_ends_with_all_of_its_processes(served_model_folder, tmp_path):
    config = VLLMServerConfig(dtype="float32", max_model_len=64, weight_transfer="none")
    with VLLMServer(str(served_model_folder), config, log_path=tmp_path / "log") as server:
        supervisor = psutil.Process(server.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
        assert len(family) >= 3  # the supervisor, the server of requests, the engine
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    server.stop()  # once more does nothing
