"""Weights to a server by NCCL, which is replaced at its edge; the server's protocol is real."""

import socket

import pytest
import torch
from weight_server import (
    CUDA,
    INFOS,
    WEIGHTS,
    Wire,
    assert_arrived,
    connected,
    engine_of,
    replace_cuda,
    replace_nccl,
    weight_server,
)

from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.chat_client import ChatClient
from trl_r1zero.generation.vllm_client import VLLMConnectionError, VLLMRefusal
from trl_r1zero.generation.vllm_compat import NCCL_PACKING
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError
from trl_r1zero.generation.weight_engines import open_weight_sync, pairing_error
from trl_r1zero.generation.weight_sync import in_thread, numbered, wire_dtype

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
pytestmark = pytest.mark.timeout(120)


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


def test_the_current_device_is_asked_for_only_without_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert numbered(torch.device("cuda")) == torch.device("cuda", 3)
    assert numbered(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert numbered(torch.device("cpu")) == torch.device("cpu")


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
    assert info.packed
    assert info.packed_buffer_size_bytes == NCCL_PACKING["packed_buffer_size_bytes"]
    assert info.packed_num_buffers == NCCL_PACKING["packed_num_buffers"]
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
