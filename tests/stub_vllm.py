"""A stand-in for a vLLM server that sleeps: it refuses whatever comes in the wrong order.

It takes weights by gloo as vLLM's worker does, and answers with tokens that follow from the seed.
"""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from trl_r1zero.generation.weight_transfer import TensorInfo, join_as_worker, receive_weights


class Refusal(Exception):
    """The request comes at the wrong time."""


class StubServer:
    """An HTTP server in a thread; `close` or `die` ends it.

    Attributes:
        requests: What was asked of it in this order: paths, and in brackets what they said.
        memory: `awake`, `asleep`, or `weights` (awake but for the key-value cache).
        weights: What it received, by name; None if it has none to sample with.
    """

    def __init__(
        self, *, enable_sleep_mode: bool = True, asleep: bool = False, port: int = 0
    ) -> None:
        self.requests: list[str] = []
        self.memory = "asleep" if asleep else "awake"
        self.weights: dict[str, torch.Tensor] | None = None if asleep else {}
        self.enable_sleep_mode = enable_sleep_mode
        self._incoming: dict[str, torch.Tensor] | None = None
        self._group: Any = None
        self._running = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply({})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self._reply(json.loads(self.rfile.read(length) or b"{}"))

            def _reply(self, body: dict[str, Any]) -> None:
                try:
                    status, answer = 200, stub.answer(self.path, body)
                except Refusal as refusal:
                    status, answer = 409, {"error": {"message": str(refusal)}}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256  # all rows are on their way at once

        self._http = Server(("127.0.0.1", port), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._group = None

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        url = urlsplit(path)
        name, query = url.path, {key: values[0] for key, values in parse_qs(url.query).items()}
        quiet = ("/health", "/v1/models", "/server_info", "/get_world_size", "/is_sleeping")
        with self._lock:
            if name not in quiet:
                said = "".join(f"[{value}]" for key, value in query.items() if key != "mode")
                if self.requests[-1:] != [name + said]:  # all rows of a batch as one
                    self.requests.append(name + said)
            action = getattr(self, name.strip("/").replace("/", "_"), None)
            self._running += name == "/v1/completions"
        try:
            if action is None:
                raise Refusal(f"there is no {name}")
            return action(body, query)
        finally:
            self._running -= name == "/v1/completions"

    def _want(self, what: str, *memory: str) -> None:
        if self.memory not in memory:
            raise Refusal(f"{what} while the server is {self.memory}")

    # Endpoints

    def health(self, body: Any, query: Any) -> Any:
        return {}

    def v1_models(self, body: Any, query: Any) -> Any:
        return {"data": [{"id": "stub", "max_model_len": 4096}]}

    def server_info(self, body: Any, query: Any) -> Any:
        model = {"enable_sleep_mode": self.enable_sleep_mode, "dtype": "torch.float32"}
        return {
            "vllm_config": {"model_config": model, "weight_transfer_config": {"backend": "gloo"}}
        }

    def is_sleeping(self, body: Any, query: Any) -> Any:
        return {"is_sleeping": self.memory != "awake"}

    def get_world_size(self, body: Any, query: Any) -> Any:
        return {"world_size": 1}

    def init_weight_transfer_engine(self, body: Any, query: Any) -> Any:
        info = body["init_info"]
        self._group = join_as_worker(
            info["master_address"],
            info["master_port"],
            info["rank_offset"],
            info["world_size"],
            info["timeout_seconds"],
        )
        return {}

    def start_weight_update(self, body: Any, query: Any) -> Any:
        self._want("weights", "awake", "weights")
        self._incoming = {}
        return {}

    def update_weights(self, body: Any, query: Any) -> Any:
        self._want("weights", "awake", "weights")
        if self._incoming is None:
            raise Refusal("weights outside of an update")
        info = body["update_info"]
        columns = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        tensors = [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in columns]
        for bucket in receive_weights(self._group, tensors):
            self._incoming |= dict(bucket)
        return {}

    def finish_weight_update(self, body: Any, query: Any) -> Any:
        if not self._incoming:
            raise Refusal("the end of an update that had no weights")
        self.weights, self._incoming = self._incoming, None
        return {}

    def reset_prefix_cache(self, body: Any, query: Any) -> Any:
        return {}

    def sleep(self, body: Any, query: dict[str, str]) -> Any:
        self._want("sleep", "awake")
        if self._running:
            raise Refusal("sleep while requests run")
        self.memory = "asleep"
        if query["level"] == "2":
            self.weights = None
        return {}

    def wake_up(self, body: Any, query: dict[str, str]) -> Any:
        before, after = {
            "weights": ("asleep", "weights"),
            "kv_cache": ("weights", "awake"),
        }[query["tags"]]
        self._want(f"wake_up of {query['tags']}", before)
        self.memory = after
        return {}

    def v1_completions(self, body: dict[str, Any], query: Any) -> Any:
        self._want("a completion", "awake")
        if self.weights is None:
            raise Refusal("a completion without weights")
        prompt = body["prompt"]
        if body.get("prompt_logprobs") is not None:
            positions = [{str(token): {"logprob": -1.0}} for token in prompt]
            return {"choices": [{"prompt_logprobs": positions}]}
        rng = random.Random(body["seed"])
        ids = [rng.randrange(48, 58) for _ in range(rng.randint(2, body["max_tokens"]))]
        choice = {
            "finish_reason": "stop",
            "token_ids": ids,
            "text": bytes(ids).decode(),
            "logprobs": {"token_logprobs": [-1.0] * len(ids)},
        }
        return {"choices": [choice]}


def as_own_server(monkeypatch, *stubs: StubServer) -> None:
    """Let a trainer's own servers be these stubs, one after the other, each start the next one."""
    from trl_r1zero.generation.vllm_client import VLLMServerEngine

    left = list(stubs)

    def start(model, config, tokenizer, *, log_path, read_timeout_seconds) -> VLLMServerEngine:
        stub = left.pop(0)
        process = SimpleNamespace(
            is_alive=lambda: True,
            first_error=lambda: None,
            stop=lambda: None,
            log_path=log_path,
        )
        return VLLMServerEngine(
            stub.base_url, tokenizer, server=process, read_timeout_seconds=read_timeout_seconds
        )

    monkeypatch.setattr(VLLMServerEngine, "start", start)
