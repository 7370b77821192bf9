"""What goes wrong on the process that talks to the server ends all processes, in its words."""

import json
import os
import socket
import subprocess
import sys

import pytest
from tiny_models import REPOSITORY
from weight_server import Wire, weight_server

from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.generation.weight_sync import StuckTransferError
from trl_r1zero.trainers.server_generation import ServerGeneration

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def learnt(tiny_model_folder, tmp_path_factory) -> list[dict]:
    """What each of two real processes learnt of each failure."""
    output = str(tmp_path_factory.mktemp("failures") / "rank")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(REPOSITORY / "tests" / "failing_ranks.py")
    with weight_server(Wire()) as server:
        server.answers["/v1/completions"] = lambda: (200, "<html>not an API</html>")
        server.receives = False
        for path in ("/health", "/v1/models", "/is_sleeping", "/server_info?config_format=json"):
            server.answers[f"/strange{path}"] = lambda path=path: (
                200,
                json.dumps(server.answer("GET", path, None)),
            )
        server.answers["/strange/get_world_size"] = lambda: (200, "{}")
        paths = [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
        processes = [
            subprocess.Popen(
                [sys.executable, script, server.url, str(tiny_model_folder), output],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            for process in processes:
                _, errors = process.communicate(timeout=150)
                assert process.returncode == 0, errors[-4000:]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return [json.loads(open(f"{output}.{rank}").read()) for rank in range(2)]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("broken communicator", "broke off: NCCL error: unhandled cuda error"),
        ("no world size", "KeyError: 'world_size'"),
        ("no JSON", "JSONDecodeError: Expecting value"),
        ("no JSON, later", "JSONDecodeError: Expecting value"),
        ("a probe", "JSONDecodeError: Expecting value"),
    ],
)
def test_every_process_learns_of_a_failure_of_the_first(failure, words, learnt):
    first, second = (of_rank[failure] for of_rank in learnt)
    assert first["said"].startswith("VLLMServerError: ")
    assert words in first["said"]
    assert second["said"] == first["said"]
    assert max(first["seconds"], second["seconds"]) < 20


class Server:
    """One that this trainer started, and that is gone."""

    log_path = "server.log"

    def first_error(self) -> None:
        return None


class Engine:
    server = Server()

    def is_down(self, within_seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize("stuck", [False, True])
def test_another_server_is_started_unless_this_process_is_stuck(stuck, monkeypatch):
    generation = ServerGeneration.__new__(ServerGeneration)
    generation._engine, generation._restarts = Engine(), 0
    started = []
    monkeypatch.setattr(generation, "_connect", lambda: started.append(True))
    error = (StuckTransferError if stuck else VLLMServerError)("the transfer broke off")
    assert generation._recover(error) is (error if stuck else None)
    assert len(started) == (0 if stuck else 1)
