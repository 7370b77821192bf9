"""Many requests at once, where a process may have few files open: a real server, real limits."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_r1zero.generation.connections import error_message, is_loopback

ROWS = 200
# Prints how many completions came, or the error. The limits are those of this process alone.
CLIENT = """
import os, resource, sys
from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerError

url, rows, soft, hard = sys.argv[1], *map(int, sys.argv[2:])
tokenizer = build_embedded_tokenizer()
opened = len(os.listdir("/dev/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (opened + soft, opened + hard))
engine = VLLMServerEngine(url, tokenizer)
try:
    print(len(list(engine.stream([[1]] * rows, SamplingConfig(max_tokens=4), [0] * rows))))
except VLLMServerError as error:
    print(type(error).__name__, error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[1] == opened + hard)
"""


class _Handler(BaseHTTPRequestHandler):
    """Answers as a vLLM server does."""

    protocol_version = "HTTP/1.1"
    together: threading.Barrier | None = None  # completions that have to be under way at once

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "model", "max_model_len": 64}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.together is not None:
            self.together.wait(60)
        choice = {
            "finish_reason": "stop",
            "token_ids": [2],
            "text": "2",
            "logprobs": {"token_logprobs": [-0.5]},
        }
        self._answer({"choices": [choice]})

    def _answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = ROWS


@pytest.fixture
def server() -> Iterator[_Server]:
    http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def run_client(server: _Server, soft: int, hard: int) -> list[str]:
    """What a client printed that may open `soft` more files, and raise this to `hard`."""
    url = f"http://127.0.0.1:{server.server_port}"
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, url, *map(str, (ROWS, soft, hard))],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_soft_limit_is_raised_as_far_as_the_connections_need(server):
    server.RequestHandlerClass.together = threading.Barrier(ROWS)
    assert run_client(server, soft=40, hard=400) == [str(ROWS), "True"]


@pytest.mark.parametrize("hard", [40, 100])
def test_below_the_hard_limit_the_rest_waits(server, hard):
    assert run_client(server, soft=40, hard=hard) == [str(ROWS), "True"]


def test_no_room_at_all_is_an_error_that_names_the_limit(server):
    line, _ = run_client(server, soft=10, hard=10)
    assert line.startswith("VLLMServerError there is no room for a connection")
    assert "`ulimit -n`" in line
    assert "raise the limit" in line


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("gpu-7", False),
        ("127.example.org", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no such layer", "code": 400}}', "no such layer"),
        ('{"error": "no key"}', "no key"),
        ('{"detail": "x"}', '{"detail": "x"}'),
        ("EngineCore\n  died", "EngineCore died"),
        ("", "no reason given"),
    ],
)
def test_the_words_of_an_error(body, message):
    assert error_message(body) == message
