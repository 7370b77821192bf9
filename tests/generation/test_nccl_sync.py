"""What ends a transfer by NCCL: servers that die, refuse or hang, errors of the communicator."""

import re
import threading
import time

import pytest
import torch
from weight_server import (
    INFOS,
    WEIGHTS,
    BlockedCommunicator,
    Communicator,
    Wire,
    assert_arrived,
    connected,
    replace_cuda,
    replace_nccl,
    weight_server,
)

from trl_r1zero.generation import nccl_sync, weight_sync
from trl_r1zero.generation.vllm_client import VLLMConnectionError, VLLMRefusal
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.generation.weight_sync import StuckTransferError
from trl_r1zero.generation.weight_transfer import TensorInfo

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
        monkeypatch.setattr(weight_sync.TrainerRendezvous, "await_worker", lambda *_: None)
    monkeypatch.setattr(weight_sync, "_SECONDS_FOR_A_REASON", 2.0)
    replace_nccl(monkeypatch, wire, SameDevice)
    with pytest.raises(VLLMServerError, match=r"one GPU; .*'s, 2\? .*--weight_transfer ipc"):
        connected(server)


def hang_up():
    time.sleep(0.3)
    raise ConnectionAbortedError
