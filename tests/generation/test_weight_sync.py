"""Weights to a server by NCCL, which is replaced at its edge; the server's protocol is real."""

import re
import socket
import threading
import time

import pytest
import torch
from weight_server import (
    BlockedCommunicator,
    Communicator,
    Wire,
    replace_cuda,
    replace_nccl,
    weight_server,
)

from trl_r1zero.generation import SamplingConfig, nccl_sync, weight_sync
from trl_r1zero.generation.chat_client import ChatClient
from trl_r1zero.generation.nccl_sync import NCCLCommunicator
from trl_r1zero.generation.vllm_client import VLLMConnectionError, VLLMRefusal, VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError
from trl_r1zero.generation.weight_sync import (
    StuckTransferError,
    in_thread,
    open_weight_sync,
    pairing_error,
    wire_dtype,
)
from trl_r1zero.generation.weight_transfer import TensorInfo, TrainerRendezvous

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
pytestmark = pytest.mark.timeout(120)

CUDA = torch.device("cuda")  # without a number, as accelerate has it in a single process
WEIGHTS = {
    "embedding": torch.randn(7, 3).bfloat16(),
    "norm": torch.randn(3),
    "steps": torch.arange(4),
}
INFOS = [TensorInfo.of(*named) for named in WEIGHTS.items()]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def server(wire):
    with weight_server(wire) as server:
        yield server


@pytest.fixture
def cuda(monkeypatch, wire) -> None:
    replace_cuda(monkeypatch, current_device=2)
    replace_nccl(monkeypatch, wire)


def engine_of(server, seconds: float = 20) -> VLLMServerEngine:
    return VLLMServerEngine(server.url, tokenizer=object(), read_timeout_seconds=seconds)


def connected(server, seconds: float = 20):
    return open_weight_sync(engine_of(server), CUDA, timeout_seconds=seconds)


def assert_arrived(server) -> None:
    assert list(server.weights) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(server.weights[name], tensor)


# The way it goes


@pytest.mark.parametrize(("device", "number"), [("cuda", 2), ("cuda:1", 1)])
def test_weights_go_from_a_trainer_whose_device_has_no_number_too(
    device, number, cuda, server, wire
):
    sync = open_weight_sync(engine_of(server), torch.device(device), timeout_seconds=20)
    sync.update(INFOS, iter(WEIGHTS.items()))
    assert_arrived(server)
    (communicator,) = wire.made
    assert communicator.connected == {
        "world_size": 2,
        "device_index": number,  # a new thread's current device would be 0
        "current_device": number,
    }
    assert server.asked[-6:] == [
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
    ]
    server.weights.clear()
    sync.update(INFOS, iter(WEIGHTS.items()))
    assert_arrived(server)


def test_the_current_device_is_asked_for_only_without_a_number():
    def current() -> int:
        return 3

    def never() -> int:
        raise AssertionError

    assert nccl_sync.device_index(torch.device("cuda"), current) == 3
    assert nccl_sync.device_index(torch.device("cuda", 0), never) == 0


def test_what_follows_the_last_weight_waits_until_all_have_left(cuda, server):
    """After the last weight adapters are taken out of the weights again, in place."""
    weights = {name: tensor.clone() for name, tensor in WEIGHTS.items()}

    def tensors():
        yield from weights.items()
        for tensor in weights.values():
            tensor.zero_()

    connected(server).update(INFOS, tensors())
    assert_arrived(server)


def test_what_was_not_announced_does_not_travel(cuda, server):
    sync = connected(server)
    with pytest.raises(AssertionError, match="'embedding'"):
        sync.update(INFOS, iter([("embedding", torch.zeros(7, 4).bfloat16())]))
    assert server.weights == {}


def test_the_meeting_is_on_loopback_and_both_sides_know_the_chunks(cuda, server):
    connected(server)
    info = server.init_info
    assert info.master_address == "127.0.0.1"
    assert info.packed_buffer_size_bytes == nccl_sync.BUFFER_BYTES <= 256 * 2**20
    assert info.packed_num_buffers == nccl_sync.NUM_BUFFERS
    for address in {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)}:
        if not address.startswith("127.") and address != "::1":
            with pytest.raises(OSError):
                socket.create_connection((address, info.master_port), timeout=1).close()


def test_a_given_port_is_where_they_meet(cuda, server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    open_weight_sync(engine_of(server), CUDA, port=port, timeout_seconds=20)
    assert server.init_info.master_port == port


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        ("nccl", "cpu", "by nccl, but a trainer on cpu sends by gloo; .*--weight_transfer gloo"),
        (None, "cpu", "by nothing, .*--weight_transfer gloo"),
        (None, "cuda", "by nothing, .* sends by nccl or gloo; .*--weight_transfer nccl"),
        ("sparse_nccl", "cuda", "by sparse_nccl, but"),
    ],
)
def test_a_wrong_pairing_says_what_to_start_the_server_with(backend, device, words, wire):
    with weight_server(wire, backend) as server, pytest.raises(VLLMServerError, match=words):
        open_weight_sync(engine_of(server), torch.device(device))


def test_right_pairings():
    assert pairing_error("nccl", "cuda", "url") is None
    assert pairing_error("gloo", "cuda", "url") is None
    assert pairing_error("gloo", "cpu", "url") is None


# What travels


@pytest.mark.parametrize(
    ("dtype", "server_dtype", "expected"),
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float16", "float16"),
        ("float64", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),  # never widened: the server does that
        ("bfloat16", "float16", "bfloat16"),  # as wide: not a trainer's to decide
        ("float32", "float32", "float32"),
        ("int64", "bfloat16", "int64"),
        ("uint8", "float32", "uint8"),
        ("bool", "bfloat16", "bool"),
        ("float32", None, "float32"),
    ],
)
def test_weights_travel_in_the_narrower_dtype(dtype, server_dtype, expected):
    server = None if server_dtype is None else getattr(torch, server_dtype)
    assert wire_dtype(getattr(torch, dtype), server) == getattr(torch, expected)


@pytest.mark.parametrize("server_dtype", [torch.bfloat16, torch.float16])
def test_a_weight_rounded_before_it_travels_is_the_one_rounded_after(server_dtype):
    """As vLLM rounds, which copies what it receives into a parameter of its own dtype."""
    weight = torch.cat(
        [
            torch.randn(10_000, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0.0, -0.0, 1e-8, 1e-40, 65519.0, 65520.0, 3e38, float("inf")]),
            # Halfway between two neighbours: to the even one, in both.
            1 + torch.arange(64) * 2.0**-9,
        ]
    )
    after = torch.empty(weight.shape, dtype=server_dtype).copy_(weight)
    before = torch.empty(weight.shape, dtype=server_dtype)
    before.copy_(weight.to(wire_dtype(weight.dtype, server_dtype)))
    assert torch.equal(before.view(torch.int16), after.view(torch.int16))


# Faults


def test_a_server_that_dies_in_a_transfer_leaves_the_trainer_free(monkeypatch, cuda, server, wire):
    replace_nccl(monkeypatch, wire, BlockedCommunicator)
    sync = connected(server)
    server.answers["/update_weights"] = hang_up
    start = time.monotonic()
    tensors = (named for named in WEIGHTS.items())
    with pytest.raises(VLLMConnectionError, match="did not answer /update_weights"):
        sync.update(INFOS, tensors)
    assert time.monotonic() - start < 10
    list(tensors)  # gathering goes on to its end, on all processes: no other thread holds it
    (blocked,) = wire.made
    blocked.thread.join(5)
    assert not blocked.thread.is_alive()

    replace_nccl(monkeypatch, wire)  # and another server
    with weight_server(wire) as other:
        connected(other).update(INFOS, iter(WEIGHTS.items()))
        assert_arrived(other)


def test_a_transfer_longer_than_the_queue_is_ended_too(monkeypatch, cuda, server, wire):
    """The gathering thread is ahead, and waits for the one that is blocked."""

    class OneByOne(BlockedCommunicator):
        def broadcast(self, tensors):
            self.thread = threading.current_thread()
            for named in tensors:
                self.send(*named)

    replace_nccl(monkeypatch, wire, OneByOne)
    sync = connected(server)
    server.answers["/update_weights"] = hang_up
    many = [(f"w{number}", torch.zeros(1)) for number in range(50)]
    with pytest.raises(VLLMConnectionError):
        sync.update([TensorInfo.of(*named) for named in many], iter(many))
    wire.made[0].thread.join(5)
    assert not wire.made[0].thread.is_alive()


def test_a_broadcast_that_nothing_ends_is_an_error_of_its_own(monkeypatch, cuda, server, wire):
    ending = threading.Event()

    class Stuck(Communicator):
        def send(self, name, tensor):
            ending.wait()

    replace_nccl(monkeypatch, wire, Stuck)
    monkeypatch.setattr(nccl_sync, "_SECONDS_TO_END", 0.1)
    sync = connected(server)
    server.answers["/update_weights"] = hang_up
    try:
        with pytest.raises(StuckTransferError, match=r"did not answer(.|\n)*GPU is stuck"):
            sync.update(INFOS, iter(WEIGHTS.items()))
    finally:
        ending.set()


def test_a_refusal_is_in_the_servers_words(monkeypatch, cuda, server, wire):
    replace_nccl(monkeypatch, wire, BlockedCommunicator)
    sync = connected(server)
    server.answers["/update_weights"] = lambda: (400, '{"error": {"message": "no such layer"}}')
    with pytest.raises(VLLMRefusal, match=r"refused /update_weights .*no such layer"):
        sync.update(INFOS, iter(WEIGHTS.items()))
    assert wire.made[0].aborted.is_set()


def test_a_refused_meeting_never_reaches_nccl(cuda, server, wire):
    """Nothing could end the wait there for workers that do not come."""
    server.answers["/init_weight_transfer_engine"] = lambda: (500, "out of memory")
    with pytest.raises(VLLMRefusal, match="out of memory"):
        connected(server)
    assert wire.made[0].connected == {}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("NCCL error: unhandled cuda error"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError("no route to host"),
        ValueError("Unsupported dtype"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["connect", "broadcast"])
def test_any_error_of_the_communicator_is_one_of_the_transfer(
    where, error, monkeypatch, cuda, server, wire
):
    class Broken(Communicator):
        pass

    def fail(self, *arguments):
        raise error

    monkeypatch.setattr(weight_sync, "_SECONDS_FOR_A_REASON", 0.2)
    setattr(Broken, where, fail)
    replace_nccl(monkeypatch, wire, Broken)
    start = time.monotonic()
    with pytest.raises(VLLMServerError, match=f"weights .* broke off: {re.escape(str(error))}"):
        connected(server).update(INFOS, iter(WEIGHTS.items()))
    assert time.monotonic() - start < 10  # the server would wait for weights much longer
    assert wire.made[0].aborted.is_set()


@pytest.mark.parametrize(
    ("refusal", "own"),
    [
        (None, "invalid usage (run with NCCL_DEBUG=WARN for details)"),
        ((500, "EngineCore died"), "invalid usage (run with NCCL_DEBUG=WARN for details)"),
        ((500, "NCCL error: invalid usage"), "remote process exited"),
    ],
)
def test_nccl_on_one_gpu_says_what_to_do(refusal, own, monkeypatch, cuda, server, wire):
    class SameDevice(Communicator):
        def connect(self, store, world_size, device_index):
            super().connect(store, world_size, device_index)
            raise RuntimeError(f"NCCL error: {own}")

    if refusal is not None:

        def refuse():
            # The worker comes, and fails as the trainer does.
            time.sleep(0.2)
            return refusal

        server.answers["/init_weight_transfer_engine"] = refuse
        monkeypatch.setattr(nccl_sync.TrainerRendezvous, "await_worker", lambda *_: None)
    monkeypatch.setattr(weight_sync, "_SECONDS_FOR_A_REASON", 2.0)
    replace_nccl(monkeypatch, wire, SameDevice)
    with pytest.raises(VLLMServerError, match=r"one GPU; .*'s, 2\? .*--weight_transfer ipc"):
        connected(server)


def hang_up():
    time.sleep(0.3)
    raise ConnectionAbortedError


# Waiting, and proxies


@pytest.fixture
def proxies(monkeypatch):
    """Every way to name a proxy, one that takes all connections and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.upper(), address)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_no_proxy_stands_between_a_trainer_and_its_server(proxies, cuda, server):
    def everything():
        engine = engine_of(server, 5)
        sync = open_weight_sync(engine, CUDA, timeout_seconds=20)
        sync.update(INFOS, iter(WEIGHTS.items()))
        with pytest.raises(VLLMRefusal, match="no sampling here"):
            list(engine.stream([[5]], SamplingConfig(max_tokens=4), [0]))
        own = VLLMServer("m", VLLMServerConfig())
        own.port = int(server.url.rsplit(":", 1)[1])
        assert own.is_healthy()
        assert ChatClient(f"{server.url}/v1").model == "m"

    server.answers["/v1/completions"] = lambda: (400, "no sampling here")
    in_thread(everything).result(timeout=60)
    assert_arrived(server)


@pytest.mark.parametrize("path", ["/server_info?config_format=json", "/get_world_size"])
def test_no_question_outlives_its_timeout(path, cuda, server):
    engine = engine_of(server, 0.5)
    server.answers[path] = lambda: wait_for(server)
    with pytest.raises(VLLMConnectionError, match="timed out"):
        in_thread(lambda: open_weight_sync(engine, CUDA, timeout_seconds=0.5)).result(10)


@pytest.mark.parametrize(
    "path",
    [
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
    ],
)
def test_no_step_outlives_its_timeout(path, cuda, server):
    server.answers[path] = lambda: wait_for(server)
    with pytest.raises(VLLMServerError, match=r"timed out|did not join"):
        in_thread(lambda: connected(server, 0.5).update(INFOS, iter(WEIGHTS.items()))).result(10)


def wait_for(server):
    server.ending.wait()
    raise ConnectionAbortedError


# vLLM's side


def test_vllm_unpacks_what_vllm_packs_for_us(monkeypatch, cuda):
    """Its producer, as we call it, and its consumer, as its server does, over a pipe."""
    from vllm.distributed.weight_transfer import packed_tensor

    class Stream:
        def synchronize(self):
            pass

        __enter__ = __exit__ = lambda *_: None

    class Pipe:
        def __init__(self, chunks):
            self.chunks = chunks

    class Sender(Pipe):
        def broadcast(self, tensor, src):
            assert src == 0
            self.chunks.append(tensor)

    class Receiver(Pipe):
        def broadcast(self, tensor, src):
            tensor.copy_(self.chunks.pop(0))

    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, number: [Stream()] * number)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(nccl_sync, "BUFFER_BYTES", 300)
    communicator = NCCLCommunicator()
    weights = {f"w{n}": torch.randn(n, 5).bfloat16() for n in range(1, 20)}
    chunks = []
    communicator._group = Sender(chunks)
    communicator.broadcast(iter(weights.items()))
    assert len(chunks) > 3
    received = {}
    packed_tensor.packed_nccl_broadcast_consumer(
        iterator=iter((n, (list(t.shape), t.dtype)) for n, t in weights.items()),
        group=Receiver(chunks),
        src=0,
        post_unpack_func=lambda named: received.update(
            (name, tensor.clone()) for name, tensor in named
        ),
        buffer_size_bytes=nccl_sync.BUFFER_BYTES,
        num_buffers=nccl_sync.NUM_BUFFERS,
        device="cpu",
    )
    assert list(received) == list(weights)
    assert all(torch.equal(received[name], tensor) for name, tensor in weights.items())


class Library:
    """NCCL's library as vLLM wraps it: what was asked of it."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


def test_an_aborted_communicator_of_vllm_is_never_touched_again(cuda, monkeypatch):
    """Its memory is freed: a broadcast that the other thread was about to begin must not."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
    from vllm.distributed.weight_transfer import packed_tensor

    group = PyNcclCommunicator.__new__(PyNcclCommunicator)
    group.available, group.disabled, group.rank = True, False, 0
    group.nccl, group.comm, group.device = Library(), object(), torch.device("cuda", 1)
    forgotten = []
    monkeypatch.setattr(
        packed_tensor._get_streams, "cache_clear", lambda: forgotten.append(True), raising=True
    )
    communicator = NCCLCommunicator()
    communicator._group = group
    communicator.abort()
    assert group.nccl.calls == ["ncclCommAbort"]
    assert forgotten
    group.broadcast(torch.zeros(1), src=0)
    communicator.abort()  # a second time
    assert group.nccl.calls == ["ncclCommAbort"]
    assert {"ncclCommAbort"} <= {function.name for function in NCCLLibrary.exported_functions}


def test_joining_as_vllms_trainer_does(cuda, monkeypatch):
    """The id of the communicator reaches a worker through our store."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.utils import StatelessProcessGroup

    class Joined:
        disabled = False

        def __init__(self, group, device):
            self.rank, self.device = group.rank, device
            self.id = group.broadcast_obj("the unique id" if group.rank == 0 else None, src=0)

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Joined)
    meeting = TrainerRendezvous("127.0.0.1", num_workers=1, port=None, timeout_seconds=20)

    def worker():
        group = StatelessProcessGroup.create(meeting.address, meeting.port, 1, meeting.world_size)
        return Joined(group, 0).id

    result = in_thread(worker)
    meeting.await_worker(lambda: None)
    communicator = NCCLCommunicator()
    communicator.connect(meeting.store, meeting.world_size, 2)
    assert result.result(timeout=20) == "the unique id"
    assert (communicator._group.rank, communicator._group.device) == (0, 2)
    monkeypatch.setattr(Joined, "disabled", True)
    with pytest.raises(RuntimeError, match="no NCCL library"):
        communicator.connect(meeting.store, meeting.world_size, 2)
