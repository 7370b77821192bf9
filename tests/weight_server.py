"""A stand-in for a vLLM server that takes weights by NCCL, as strict as the real one.

It speaks vLLM's protocol over HTTP, reads the same fields with vLLM's own classes, and answers
`/update_weights` only once all that was announced has arrived. NCCL itself, and what torch needs a
GPU for, are replaced at their edge.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.generation import nccl_sync
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.weight_engines import open_weight_sync
from trl_r1zero.generation.weight_sync import WeightSync
from trl_r1zero.generation.weight_transfer import TensorInfo

CUDA = torch.device("cuda")  # without a number, as accelerate has it in a single process
WEIGHTS = {
    "embedding": torch.randn(7, 3).bfloat16(),
    "norm": torch.randn(3),
    "steps": torch.arange(4),
}
INFOS = [TensorInfo.of(*named) for named in WEIGHTS.items()]


class Wire:
    """What lies between a communicator and the server's worker."""

    def __init__(self) -> None:
        self.tensors: queue.Queue[tuple[str, torch.Tensor]] = queue.Queue()
        self.made: list[Communicator] = []


class Communicator:
    """NCCL, to test with: as blocking, and as thread-bound.

    Attributes:
        connected: With what, and the device of the calling thread.
        thread: That of the last broadcast.
    """

    wire: Wire

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.connected: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.wire.made.append(self)

    def connect(self, store: Any, world_size: int, device_index: int) -> None:
        store.set("broadcast_from/0/0", b"the unique id")
        self.connected = {
            "world_size": world_size,
            "device_index": device_index,
            "current_device": torch.cuda.current_device(),
        }

    def broadcast(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.thread = threading.current_thread()
        assert torch.cuda.current_device() == self.connected["device_index"]
        for name, tensor in list(tensors):  # packed, so all are held before the first leaves
            self.send(name, tensor.clone())

    def send(self, name: str, tensor: torch.Tensor) -> None:
        self.wire.tensors.put((name, tensor))

    def abort(self) -> None:
        self.aborted.set()


class BlockedCommunicator(Communicator):
    """Its first broadcast finds no receiver, as when the server dies; only an abort ends that."""

    def send(self, name: str, tensor: torch.Tensor) -> None:
        self.aborted.wait()
        raise RuntimeError("NCCL error: remote process exited or there was a network error")


class WeightServer:
    """What a test knows of a running server.

    Attributes:
        url: Its address.
        asked: The paths of its requests, in order.
        init_info: What it was told of the meeting.
        weights: What it has received.
        answers: By path, a function that is called before the server's own answer: it may return
            a status and an error's words, wait, or raise ConnectionAbortedError to hang up.
        receives: False if the weights go to a wire of another process: it takes them for arrived.
    """

    def __init__(self, backend: str | None, dtype: str, wire: Wire) -> None:
        self.backend = backend
        self.dtype = dtype
        self.wire = wire
        self.url = ""
        self.asked: list[str] = []
        self.init_info: Any = None
        self.weights: dict[str, torch.Tensor] = {}
        self.answers: dict[str, Callable[[], tuple[int, str] | None]] = {}
        self.receives = True
        self.ending = threading.Event()
        self._state = "no trainer"
        self._store: Any = None

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path == "/health":
            return {}
        if path == "/v1/models":
            return {"data": [{"id": "m", "max_model_len": 64}]}
        if path == "/server_info?config_format=json":
            transfer = None if self.backend is None else {"backend": self.backend}
            model = {"dtype": f"torch.{self.dtype}"}
            return {"vllm_config": {"weight_transfer_config": transfer, "model_config": model}}
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/is_sleeping":
            return {"is_sleeping": False}
        assert method == "POST", path
        steps = {
            "/init_weight_transfer_engine": (None, "ready", self._meet),
            # Or after an update that was broken off.
            "/start_weight_update": ("ready started updated", "started", lambda body: None),
            "/update_weights": ("started", "updated", self._receive),
            "/finish_weight_update": ("updated", "finished", lambda body: None),
            "/reset_prefix_cache": ("finished", "ready", lambda body: None),
        }
        before, after, work = steps[path]
        assert before is None or self._state in before.split(), f"{path} after {self._state}"
        work(body)
        self._state = after
        return {"success": True}

    def _meet(self, body: Any) -> None:
        from vllm.distributed.utils import StatelessProcessGroup
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

        info = NCCLWeightTransferInitInfo(**body["init_info"])
        assert info.master_address is not None
        assert info.master_port is not None
        assert info.packed
        self.init_info = info
        group = StatelessProcessGroup.create(
            info.master_address, info.master_port, info.rank_offset, info.world_size
        )
        self._store = group.store
        assert group.store.get("broadcast_from/0/0") == b"the unique id"

    def _receive(self, body: Any) -> None:
        info = body["update_info"]
        if not self.receives:
            return
        columns = (info["names"], info["dtype_names"], info["shapes"])
        for name, dtype, shape in zip(*columns, strict=True):
            while True:
                try:
                    came, tensor = self.wire.tensors.get(timeout=0.05)
                    break
                except queue.Empty:
                    if self.ending.is_set():
                        raise ConnectionAbortedError from None
            assert TensorInfo.of(came, tensor) == TensorInfo(name, dtype, tuple(shape))
            self.weights[came] = tensor


@contextmanager
def weight_server(
    wire: Wire, backend: str | None = "nccl", dtype: str = "bfloat16"
) -> Iterator[WeightServer]:
    """A server on this machine."""
    server = WeightServer(backend, dtype, wire)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle("GET", None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._handle("POST", json.loads(content) if content else None)

        def _handle(self, method: str, body: Any) -> None:
            server.asked.append(self.path)
            try:
                early = server.answers.get(self.path, lambda: None)()
                if early is None:
                    self._send(200, json.dumps(server.answer(method, self.path, body)))
                else:
                    self._send(*early)
            except AssertionError as error:
                self._send(400, json.dumps({"error": {"message": f"protocol: {error}"}}))
            except ConnectionAbortedError:
                self.close_connection = True

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away

    http = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        http.shutdown()
        thread.join()
        http.server_close()


def replace_cuda(monkeypatch: pytest.MonkeyPatch, current_device: int = 0) -> None:
    """What torch asks a GPU for, as strict as torch: each thread has a current device, from 0."""
    here = threading.local()
    here.device = current_device

    def set_device(device: Any) -> None:
        here.device = _get_device_index(device)  # torch's own: a ValueError without a number

    class Stream:
        def synchronize(self) -> None:
            pass

    def current_stream(device: Any = None) -> Stream:
        _get_device_index(device, optional=True)
        return Stream()

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(here, "device", 0))
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)


def replace_nccl(
    monkeypatch: pytest.MonkeyPatch, wire: Wire, communicator: type[Communicator] = Communicator
) -> None:
    """`communicator` for NCCL, at the end of `wire`."""
    own = type(communicator.__name__, (communicator,), {"wire": wire})
    monkeypatch.setattr(nccl_sync, "NCCLCommunicator", own)


def engine_of(server: WeightServer, seconds: float = 20) -> VLLMServerEngine:
    tokenizer = build_embedded_tokenizer()
    return VLLMServerEngine(server.url, tokenizer, read_timeout_seconds=seconds)


def connected(server: WeightServer, seconds: float = 20) -> WeightSync:
    return open_weight_sync(engine_of(server), CUDA, timeout_seconds=seconds)


def assert_arrived(server: WeightServer) -> None:
    assert list(server.weights) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(server.weights[name], tensor)
